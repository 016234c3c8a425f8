"""A StyleGAN2 behind an encoder, as a generator that a purifier mixes latents of (Serez et al. 2025, section 4).

Shapes: B batch, H height, W width, S side of an image; L latents, coarse to fine, of D numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.models.generators.base import Generator
from robustcli.models.generators.e4e import E4EEncoder
from robustcli.models.generators.style_transformer import StyleTransformerEncoder
from robustcli.models.generators.stylegan import StyleGAN2

Encoder = E4EEncoder | StyleTransformerEncoder


@dataclass(frozen=True)
class Frame:
    """What an encoder sees of an image, and what comes back of what the generator makes.

    Attributes:
        image: side of the images in front of the classifier.
        side: that they are resized to for the encoder, and that the generator's are averaged to.
        rows: from and to, of that side: the encoder sees these alone, and all others come back black.
    """

    image: int
    side: int
    rows: tuple[int, int]


FACES = Frame(image=256, side=256, rows=(0, 256))
CARS = Frame(image=128, side=256, rows=(32, 224))  # the encoder was trained on 192 x 256


class StyleMixing(Generator):
    """An encoder into codes W+ and a StyleGAN2, whose latents are its codes, one a layer.

    A drawn latent is the mapping of a normal vector of its own, without truncation, so that each layer has another
    style. There is no temperature: the mapping divides by the length of what it gets.

    Args:
        encoder: images into codes less the average.
        decoder: codes into images.
        latent_avg: the average code, (D,), (1,D), (L,D) or (1,L,D), which is added to those of the encoder.
        frame: of the images.

    Raises:
        ValueError: encoder, generator and average code of different L or D, or a frame that is larger than the images
            of the generator.
    """

    bounded = False
    latent_avg: Tensor

    def __init__(self, encoder: Encoder, decoder: StyleGAN2, latent_avg: Tensor, *, frame: Frame = FACES) -> None:
        super().__init__()
        shape = decoder.latents, decoder.style_dim
        if (encoder.latents, encoder.style_dim) != shape:
            raise ValueError(f"an encoder of {(encoder.latents, encoder.style_dim)} codes in front of {shape}")
        if decoder.size % frame.side:
            raise ValueError(f"images of {decoder.size} pixels do not average to {frame.side}")
        self.encoder, self.decoder, self.frame = encoder, decoder, frame
        average = latent_avg.reshape(-1, latent_avg.shape[-1])
        self.register_buffer("latent_avg", average.expand(shape).clone())
        self.latent_shapes = ((decoder.style_dim,),) * decoder.latents
        self.resolution = (3, frame.image, frame.image)
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> "StyleMixing":
        """A frozen encoder and StyleGAN2 from one file; see `robustcli.models.generators.style_files`."""
        from robustcli.models.generators.style_files import load_style_mixing

        return load_style_mixing(path)

    def encode(self, images: Tensor) -> list[Tensor]:
        """(B,3,S,S) in [0,1] -> the codes, (B,L,D) alone.

        Raises:
            ValueError: images of another shape than ``resolution``.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.resolution:
            raise ValueError(f"images are {tuple(images.shape)}: this generator takes (B, *{self.resolution})")
        first, last = self.frame.rows
        seen = _resized(2.0 * images - 1.0, self.frame.side)[:, :, first:last]
        if isinstance(self.encoder, StyleTransformerEncoder):
            query = self.decoder.mapping(self.encoder.z).expand(len(images), -1, -1)
            return [self.encoder(seen, query) + self.latent_avg]
        return [self.encoder(seen) + self.latent_avg]

    def latents(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The codes, one a layer; see `Generator.latents`."""
        (codes,) = features
        return list(codes.unbind(1))

    def decode(
        self, features: Sequence[Tensor], alphas: Tensor, noise: Sequence[Tensor], *, checkpoint: bool = False
    ) -> Tensor:
        """Codes of the image and drawn ones, mixed linearly in W+; see `Generator.decode`. Not clamped."""
        (codes,) = features
        weights = alphas.to(codes).reshape(-1, len(self.latent_shapes), 1)
        return self._images((1 - weights) * codes + weights * self._drawn(noise), checkpoint=checkpoint)

    def sample(self, noise: Sequence[Tensor]) -> Tensor:
        """Images (B,3,S,S) of L standard-normal tensors (B,D), one a layer."""
        return self._images(self._drawn(noise))

    def _drawn(self, noise: Sequence[Tensor]) -> Tensor:
        return self.decoder.mapping(torch.stack([eps.to(self.latent_avg) for eps in noise], dim=1))

    def _images(self, codes: Tensor, *, checkpoint: bool = False) -> Tensor:
        side, (first, last) = self.frame.side, self.frame.rows
        made = F.avg_pool2d(self.decoder(codes, checkpoint=checkpoint), self.decoder.size // side)
        if last - first < side:  # black, where the encoder saw nothing
            made = F.pad(made[:, :, first:last], (0, 0, first, side - last), value=-1.0)
        return 0.5 * _resized(made, self.frame.image) + 0.5


def _resized(images: Tensor, side: int) -> Tensor:
    """Bilinear, without antialiasing, as the published code does it; of half the side it is the mean of 2 x 2."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
