"""Generative models of images, behind the interfaces that purifiers use."""

from robustcli.models.generators.avae import AVAE
from robustcli.models.generators.base import Generator
from robustcli.models.generators.ddpm import DDPM
from robustcli.models.generators.e4e import E4EEncoder
from robustcli.models.generators.elbo import ELBO, bits, bound
from robustcli.models.generators.factory import avae, ddpm, load_generator, ndvae, nvae
from robustcli.models.generators.files import load_nvae, save_nvae
from robustcli.models.generators.mixture import LogisticMixture
from robustcli.models.generators.moments import moments_at
from robustcli.models.generators.nvae import NVAE
from robustcli.models.generators.rival_objectives import Adversarial, Denoising, NoisePrediction
from robustcli.models.generators.style_mixing import CARS, FACES, Frame, StyleMixing
from robustcli.models.generators.style_transformer import StyleTransformerEncoder
from robustcli.models.generators.stylegan import StyleGAN2
from robustcli.models.generators.trained import Trained

__all__ = [
    "AVAE",
    "CARS",
    "DDPM",
    "ELBO",
    "FACES",
    "NVAE",
    "Adversarial",
    "Denoising",
    "E4EEncoder",
    "Frame",
    "Generator",
    "LogisticMixture",
    "NoisePrediction",
    "StyleGAN2",
    "StyleMixing",
    "StyleTransformerEncoder",
    "Trained",
    "avae",
    "bits",
    "bound",
    "ddpm",
    "load_generator",
    "load_nvae",
    "moments_at",
    "ndvae",
    "nvae",
    "save_nvae",
]
