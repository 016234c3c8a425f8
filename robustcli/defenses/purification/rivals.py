"""Rivals of the purification by several latents, behind the same interface: DiffPure, A-VAE and ND-VAE.

Shapes: B images, C channels, H height, W width, N steps; L latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from robustcli.data import ImageClassData, ImageTextData
from robustcli.defenses.purification.cleaner import Cleaner, standard_normal
from robustcli.models.generators import AVAE, DDPM, NVAE, load_generator
from robustcli.models.generators.avae import Code
from robustcli.models.generators.ddpm import spaced
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

Data = ImageTextData | ImageClassData


class DiffPure(Cleaner):
    """Noise to a level t*, and the reverse diffusion back (Nie et al. 2022, arXiv 2205.07460), by ancestral steps.

    Differentiable from end to end: the gradient is that of the whole chain, each step computed again in the backward
    pass, so that the memory is that of one step. An attacker's shorter chain is another model, see `shortened`.

    Args:
        model: the diffusion model; left as it is.
        t: t*, the share of the levels of noise that is put on, in (0,1]; the paper: 0.1 for CIFAR-10 at L-inf 8/255,
            0.15 for ImageNet at 4/255.
        steps: of the way back, evenly spaced over those levels; the paper takes each one, 100 and 150 of 1000.
        short: steps of an attacker's shorter chain; None: a third.

    Raises:
        UserError: a value out of range.
    """

    randomised = True

    def __init__(self, model: DDPM, *, t: float = 0.1, steps: int = 100, short: int | None = None) -> None:
        super().__init__()
        self.t = parse_number("t", t, node="purifier")
        if not 0 < self.t <= 1:
            raise UserError(f"purifier.t is {t}: it is the share of the levels of noise, above 0 and up to 1.")
        wanted = at_least("steps", steps, 1, node="purifier")
        self.model, self.levels = model, spaced(model.levels, self.t, wanted)
        if len(self.levels) < wanted:
            raise UserError(
                f"purifier.steps is {wanted}, but t = {self.t:g} of {model.levels} levels are {len(self.levels)}: "
                "set it "
                "to that, or less."
            )
        self.short = max(1, wanted // 3) if short is None else at_least("short", short, 1, node="purifier")

    @classmethod
    def build(cls, settings: dict[str, Any], data: Data) -> "DiffPure":
        """The cleaner of a config node in front of models of ``data``.

        Args:
            settings: those of the constructor, but ``model`` is a path, see `DDPM.load`, or ``shipped``.

        Raises:
            UserError: no such model, or one of images of another size than those of ``data``.
        """
        return cls(_network("ddpm", settings.pop("model"), data), **settings)

    def shortened(self) -> "DiffPure":
        """The same defence in fewer steps, cheaper for an attacker; its gradient is that of another chain."""
        return DiffPure(self.model, t=self.t, steps=min(self.short, len(self.levels)), short=1)

    def prepare(self, images: Tensor) -> list[Tensor]:
        return [images]

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """The draw of a chain.

        Args:
            noise: (B, 1 + N, C, H, W): of the way there, and of each step of the way back.
        """
        (images,), (drawn,) = prepared, noise
        top = torch.full((len(images),), self.levels[0])
        x, again = self.model.noised(images, top, drawn[:, 0]), torch.is_grad_enabled() and images.requires_grad
        for place, level in enumerate(self.levels):
            lower = self.levels[place + 1] if place + 1 < len(self.levels) else None
            eps = drawn[:, place + 1]
            if again:
                x = recompute(self.model.reverse_step, x, level, lower, eps, use_reentrant=False)
            else:
                x = self.model.reverse_step(x, level, lower, eps)
        return (0.5 * x + 0.5).clamp(0.0, 1.0)

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        return [standard_normal((count, 1 + len(self.levels), *self.model.resolution), like, source)]

    def extra_repr(self) -> str:
        return f"t={self.t:g}, steps={len(self.levels)}"


class AdversarialVAE(Cleaner):
    """A-VAE (Zhou et al. 2020, as released by Serez et al. 2025): encoded, drawn from the posterior, decoded.

    The released version hands the classifier pixels out of [0,1]; here they are clamped, as every model of ours takes
    them. The nearest of several draws, which the original paper takes, is left out there too.

    Args:
        model: left as it is.
    """

    def __init__(self, model: AVAE) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def build(cls, settings: dict[str, Any], data: Data) -> "AdversarialVAE":
        """The cleaner of a config node: ``model`` is a path or ``shipped``, ``temperature`` that of its draw."""
        temperature = parse_number("temperature", settings.pop("temperature"), node="purifier")
        return cls(_network("avae", settings.pop("model"), data, temperature=temperature), **settings)

    @property
    def randomised(self) -> bool:
        """Always: the maps of noise are drawn at a temperature of 0 too."""
        return True

    def prepare(self, images: Tensor) -> list[Tensor]:
        return list(self.model.encode(images))

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        skip, mean, log_variance = prepared
        eps, *maps = noise
        return self.model.decode(Code(skip, mean, log_variance), eps, maps).clamp(0.0, 1.0)

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        shapes = (self.model.latent_shape, *self.model.map_shapes)
        return [standard_normal((count, *shape), like, source) for shape in shapes]


class NoisyVAE(Cleaner):
    """ND-VAE, the purification paper's rival: noise on the image, a draw of the posterior of an NVAE, the mean of its
    mixture.

    Args:
        model: an NVAE that was trained to give back the clean image (`Denoising`); left as it is.
        noise: standard deviation of the noise in [0,1]; the paper: 0.1 for faces and cars, 0.05 for identities.

    Raises:
        UserError: a negative noise.
    """

    randomised = True

    def __init__(self, model: NVAE, *, noise: float = 0.05) -> None:
        super().__init__()
        self.model, self.noise = model, parse_number("noise", noise, node="purifier")
        if not self.noise >= 0:
            raise UserError(f"purifier.noise is {noise}: it is a standard deviation, 0 or more.")

    @classmethod
    def build(cls, settings: dict[str, Any], data: Data) -> "NoisyVAE":
        """The cleaner of a config node: ``model`` is a path or ``shipped``."""
        return cls(_network("ndvae", settings.pop("model"), data), **settings)

    def prepare(self, images: Tensor) -> list[Tensor]:
        return [images]

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        pixels, *latents = noise
        inference = self.model.infer((prepared[0] + self.noise * pixels).clamp(0.0, 1.0), latents)
        return 0.5 * self.model.mixture(inference.parameters).mean() + 0.5

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        shapes = (self.model.resolution, *self.model.latent_shapes)
        return [standard_normal((count, *shape), like, source) for shape in shapes]

    def extra_repr(self) -> str:
        return f"noise={self.noise:g}"


def _network(kind: str, path: str | Path, data: Data, **settings: Any) -> Any:
    """The frozen network of ``path``, of ``kind`` and for the images of ``data``."""
    model = load_generator(path, shipped_for=data.name, kind=kind, **settings)
    shape = tuple(data.images(torch.tensor([0])).shape[1:])
    if shape != tuple(model.resolution):
        made, given = (" x ".join(map(str, size)) for size in (model.resolution, shape))
        raise UserError(
            f"the {kind} makes images of {made}, but those of {data.name} are {given}: choose purifier.model, or the "
            "size of the data set, to fit."
        )
    return model
