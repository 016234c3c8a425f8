"""Purification with a multiple-latent-variable generator (Serez et al. 2025, arXiv 2412.03453, section 3).

Coarse latents of the image are kept, fine ones drawn anew, and the mixture is decoded.

Shapes: B images, R draws, C channels, H height, W width; L latents, coarse to fine.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.data import ImageClassData, ImageTextData
from robustcli.defenses.preprocessing import preprocessing
from robustcli.defenses.purification.alphas import learned_attenuation, schedule
from robustcli.defenses.purification.cleaner import Cleaner, standard_normal
from robustcli.models.generators import Generator, load_generator
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

log = logging.getLogger(__name__)


class Purifier(Cleaner):
    """Images in, purified images out; differentiable from end to end, and training-free.

    Latent ``i`` of the output is ``(1 - a_i) z_i(image) + a_i z_i(drawn)`` with ``a_i = attenuation * alphas_i``: 0
    keeps the encoder's latent, 1 draws it anew. With all of them 0 the output is the deterministic reconstruction.

    Args:
        generator: encodes and decodes; left as it is.
        alphas: a schedule by name, L numbers in [0,1] or a file with them, see `schedule`.
        attenuation: in [0,1], multiplies the alphas; the paper: 1.0 for faces at 256 px, 0.7 for identities and cars.
        preprocess: images (B,C,H,W) -> images, before the encoder; None: none. One that draws, as `NormNoise` does,
            says so by an attribute ``randomised``, and takes standard-normal noise (B,C,H,W) as its second argument.
        checkpoint: keep less of the decoder for the gradient and compute it again; the gradient is the same.

    Raises:
        UserError: alphas of another length or out of [0,1], or an attenuation out of [0,1].
    """

    alphas: Tensor

    def __init__(
        self,
        generator: Generator,
        *,
        alphas: str | Path | Sequence[float] | Tensor,
        attenuation: float = 1.0,
        preprocess: Callable[..., Tensor] | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= attenuation <= 1:
            raise UserError(f"purifier.attenuation is {attenuation}: it is a share, from 0 to 1.")
        self.generator, self.preprocess, self.checkpoint = generator, preprocess, checkpoint
        self.attenuation = attenuation
        mixed = attenuation * schedule(alphas, len(generator.latent_shapes)).float()
        # Not persistent: a setting and no weight, which files leave out.
        self.register_buffer("alphas", mixed, persistent=False)

    @classmethod
    def build(cls, settings: dict[str, Any], data: ImageTextData | ImageClassData) -> "Purifier":
        """The purifier of a config node in front of models of ``data``.

        Args:
            settings: those of the constructor, but ``generator`` is a path, or ``shipped`` for the one that comes for
                ``data``, ``temperature`` is that of its prior, and ``preprocess`` is a name, see `preprocessing`.

        Raises:
            UserError: no such generator, one of images of another size than those of ``data``, or see the class.
        """
        temperature = parse_number("temperature", settings.pop("temperature"), node="purifier")
        generator = load_generator(settings.pop("generator"), temperature=temperature, shipped_for=data.name)
        shape = tuple(data.images(torch.tensor([0])).shape[1:])
        if shape != tuple(generator.resolution):
            made, given = (" x ".join(map(str, size)) for size in (generator.resolution, shape))
            raise UserError(
                f"the generator makes images of {made}, but those of {data.name} are {given}: choose "
                "purifier.generator, or the size of the data set, to fit."
            )
        learned = learned_attenuation(settings["alphas"])
        if learned is not None and learned != settings["attenuation"]:
            log.warning(
                "purifier.attenuation is %s, but the alphas of %s were learned with %g: set it to that for what was "
                "found",
                settings["attenuation"],
                settings["alphas"],
                learned,
            )
        return cls(generator, preprocess=preprocessing(settings.pop("preprocess")), **settings)

    @property
    def resolution(self) -> tuple[int, int, int]:
        """(C,H,W) of the images."""
        return self.generator.resolution

    @property
    def randomised(self) -> bool:
        """True if two passes over the same image differ."""
        return bool((self.alphas > 0).any()) or self._drawn_before

    @property
    def bounded(self) -> bool:
        """True if the generator makes images within [0,1]; the paper does not clamp what a StyleGAN2 makes."""
        return self.generator.bounded

    @property
    def plain(self) -> "Purifier":
        """The purifier without checkpoints: a block that is computed again needs what it would have kept."""
        plain = copy.copy(self)
        plain.checkpoint = False
        return plain

    def forward(self, images: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """(B,C,H,W) in [0,1] -> the same, purified; as the generator puts them out, which an NVAE does within [0,1].

        Args:
            noise: L standard-normal tensors (B, *latent shape), coarse to fine; None: from torch's global generator, in
                that order, after that of the pre-processing.

        Raises:
            ValueError: images or noise of another shape than the generator's.
        """
        drawn = self.sample_noise(len(images), images)
        if noise is not None:
            if not isinstance(noise, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in noise):
                count = len(self.generator.latent_shapes)
                raise ValueError(f"noise is {type(noise).__name__}: expected a list of {count} tensors, one a latent")
            drawn = [*drawn[: len(drawn) - len(self.generator.latent_shapes)], *noise]
        return self.finish(self.prepare(images), drawn)

    def prepare(self, images: Tensor) -> list[Tensor]:
        if tuple(images.shape[1:]) != tuple(self.resolution):
            raise ValueError(f"images are {tuple(images.shape[1:])}, but the generator makes {tuple(self.resolution)}")
        if self._drawn_before:  # each draw then has an input of its own, and the encoder runs once a draw
            return [images]
        return self.generator.encode(images if self.preprocess is None else self.preprocess(images))

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        features = prepared
        if self._drawn_before:
            assert self.preprocess is not None
            features = self.generator.encode(self.preprocess(prepared[0], noise[0]))
            noise = noise[1:]
        expected = [(len(features[0]), *shape) for shape in self.generator.latent_shapes]
        if [tuple(tensor.shape) for tensor in noise] != expected:
            raise ValueError(f"noise is {[tuple(tensor.shape) for tensor in noise]}: expected {expected}")
        return self.generator.decode(features, self.alphas, noise, checkpoint=self.checkpoint)

    def latents(self, images: Tensor) -> list[Tensor]:
        """The encoder's latents of images (B,C,H,W), L tensors (B, *latent shape), coarse to fine.

        Noise before the encoder is left out.
        """
        before = None if self._drawn_before else self.preprocess
        return self.generator.latents(self.generator.encode(images if before is None else before(images)))

    def codes(self, images: Tensor) -> Tensor:
        """Features of the encoder (B,K), those of latent i weighed by what is kept of it, 1 - a_i, and all latents
        alike
        whatever their size.
        """
        before = None if self._drawn_before else self.preprocess
        features = self.generator.encode(images if before is None else before(images))
        if len(features) != len(self.alphas):  # of a generator whose features are not one a latent
            return torch.cat([feature.flatten(1) for feature in features], dim=1)
        kept = (1.0 - self.alphas).to(images)
        parts = [weight * feature.flatten(1) for weight, feature in zip(kept, features, strict=True)]
        return torch.cat([part / part.shape[1] ** 0.5 for part in parts], dim=1)

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        shapes = ([self.resolution] if self._drawn_before else []) + list(self.generator.latent_shapes)
        return [standard_normal((count, *shape), like, source) for shape in shapes]

    @property
    def _drawn_before(self) -> bool:
        return bool(getattr(self.preprocess, "randomised", False))

    def extra_repr(self) -> str:
        return f"alphas={[round(alpha, 3) for alpha in self.alphas.tolist()]}"
