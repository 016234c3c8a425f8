"""Objectives of the generators other than NVAE, and of an NVAE that cleans.

Shapes: B batch, C channels, H height, W width; L latents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.factory import load
from robustcli.models.generators.avae import AVAE, divergence
from robustcli.models.generators.ddpm import DDPM
from robustcli.models.generators.elbo import ELBO, bound
from robustcli.models.generators.nvae import NVAE
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number
from robustcli.utils.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """WGAN-GP and a KL, the objective of the released A-VAE: batches of even number train the critic, odd ones the
    generator.

    Args:
        kl: weight of the KL, a mean over the entries of the latent.
        penalty: weight of the gradient penalty (Gulrajani et al. 2017), 10.
        drift: weight of the squared scores of real images (Karras et al. 2018), 0.001.
        pixel: weight of the absolute error of the pixels; the released version has none.
    """

    kl: float = 1.0
    penalty: float = 10.0
    drift: float = 0.001
    pixel: float = 0.0
    takes: Any = field(default=AVAE, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("kl", "penalty", "drift", "pixel"):
            if not getattr(self, key) >= 0:
                raise UserError(f"objective.{key} is {getattr(self, key)}: expected at least 0.")

    def loss(self, model: AVAE, images: Tensor, *, number: int, seed: int) -> Tensor:
        """The loss of one of the two, a scalar with gradients to its weights alone.

        Args:
            images: (B,C,H,W) in [0,1].
            number: of the batch, whose parity says whose turn it is.
            seed: names the draws.
        """
        if number % 2 == 0:
            with torch.no_grad():
                made = model.drawn(images, seed=seed)[1]
            return self._critic(model.critic, images, made, seed)
        with _fixed(model.critic):
            code, made = model.drawn(images, seed=seed)
            loss: Tensor = self.kl * divergence(code).mean() - model.critic(made).mean()
        return loss + self.pixel * (made - images).abs().mean() if self.pixel else loss

    def _critic(self, critic: nn.Module, images: Tensor, made: Tensor, seed: int) -> Tensor:
        real, false = critic(images), critic(made)
        share = torch.rand((len(images), 1, 1, 1), generator=generator(seed, "between")).to(images)
        between = (share * images + (1 - share) * made).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        steep = (slope.flatten(1).norm(dim=1) - 1.0).square().mean()
        loss: Tensor = false.mean() - real.mean() + self.penalty * steep + self.drift * real.square().mean()
        return loss


@dataclass(frozen=True, kw_only=True)
class NoisePrediction:
    """The squared error of the predicted noise at a level drawn for each image (Ho et al. 2020, equation 14)."""

    takes: Any = field(default=DDPM, init=False, repr=False)

    def loss(self, model: DDPM, images: Tensor, *, number: int, seed: int) -> Tensor:
        """The loss, a scalar with gradients to the weights of ``model``.

        Args:
            images: (B,C,H,W) in [0,1].
            number: of the batch; not read.
            seed: names level and noise.
        """
        level, eps = model.drawn(images, seed=seed)
        return F.mse_loss(model.predicted(model.noised(images, level, eps), level), eps)


@dataclass(frozen=True, kw_only=True)
class Denoising(ELBO):
    """ND-VAE: the evidence lower bound of the clean image, inferred from an attacked and noisy one.

    The attack is that of the released version, FGSM on the bare classifier within an L2 norm, all pixels moved equally;
    it starts from the classifier's own answers, so that no labels are needed.

    Args:
        classifier: that is attacked: a name of ``robustcli list``, or a file of weights.
        eps: L2 norm of the attack, 4 for the paper's faces and cars, 2 for identities.
        noise: standard deviation of the noise behind it, 0.1 and 0.05.
        beta, warmup, balance, spectral, batch_norm, iterations: see `ELBO`.
    """

    classifier: str
    eps: float | str = 2.0
    noise: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", parse_number("eps", self.eps, node="objective"))
        if not self.noise >= 0 or not float(self.eps) >= 0:
            raise UserError(f"objective.eps is {self.eps} and noise {self.noise}: expected at least 0.")
        object.__setattr__(self, "_network", load(self.classifier).requires_grad_(False).eval())

    def terms(self, model: NVAE, images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        eps = torch.randn(images.shape, generator=generator(seed, "input noise")).to(images)
        spoilt = (self._attacked(images) + self.noise * eps).clamp(0.0, 1.0)
        return bound(model, images, seed=seed, seen=spoilt)

    def _attacked(self, images: Tensor) -> Tensor:
        network: Any = getattr(self, "_network").to(images.device)  # noqa: B009 - set past the freezing of the dataclass
        with torch.enable_grad():
            pixels = images.detach().requires_grad_(True)
            logits = network(pixels)
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), pixels)
        signs = slope.sign()
        length = signs.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        attacked: Tensor = (images + float(self.eps) * signs / length).clamp(0.0, 1.0)
        return attacked


@contextmanager
def _fixed(critic: nn.Module) -> Iterator[None]:
    """Context in which a graph gets no gradients to the weights of ``critic``, though some through it."""
    weights = list(critic.parameters())
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
