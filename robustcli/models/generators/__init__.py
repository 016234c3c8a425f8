"""Generative models with several latents, behind the one interface that a purifier uses."""

from robustcli.models.generators.base import Generator
from robustcli.models.generators.e4e import E4EEncoder
from robustcli.models.generators.elbo import ELBO, bits, bound
from robustcli.models.generators.factory import load_generator, nvae
from robustcli.models.generators.files import load_nvae, save_nvae
from robustcli.models.generators.mixture import LogisticMixture
from robustcli.models.generators.moments import moments_at
from robustcli.models.generators.nvae import NVAE
from robustcli.models.generators.style_mixing import CARS, FACES, Frame, StyleMixing
from robustcli.models.generators.style_transformer import StyleTransformerEncoder
from robustcli.models.generators.stylegan import StyleGAN2

__all__ = [
    "CARS",
    "ELBO",
    "FACES",
    "NVAE",
    "E4EEncoder",
    "Frame",
    "Generator",
    "LogisticMixture",
    "StyleGAN2",
    "StyleMixing",
    "StyleTransformerEncoder",
    "bits",
    "bound",
    "load_generator",
    "load_nvae",
    "moments_at",
    "nvae",
    "save_nvae",
]
