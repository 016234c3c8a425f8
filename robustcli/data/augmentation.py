"""Label-preserving augmentation of training images.

Shapes: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.utils.errors import UserError

_HALF = 0.5  # subtracted for the brightness and multiplied for the contrast, as in the purification paper
_ASPECTS = (3 / 4, 4 / 3)  # of a crop, width by height
_ATTEMPTS = 10  # at a crop that fits; after that the image stays whole
_SHARES = ("brightness", "contrast", "equalize", "grayscale")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of each image, in the order of the keys below; without settings nothing is changed.

    Args:
        flip: mirror half of the images left to right; for digits and other writing it is wrong.
        shift: most pixels up, down, left and right; the border is repeated.
        crop_scale: smallest share of the area that a crop may keep, in (0,1]; it has an aspect of 3/4 to 4/3 and is
            resized to the image (bilinear, antialiased). 1: no crop.
        brightness: share of the images from whose pixels 0.5 is taken.
        contrast: share of the images whose pixels are halved.
        equalize: share of the images whose histograms, one a channel, are made even (in 256 steps).
        grayscale: share of the images that lose their colour.

    The last five are those of the purification paper (arXiv 2412.03453), which gives them to kornia: its
    ``RandomBrightness((0.5, 0.5))`` adds the factor less 1, its ``RandomContrast((0.5, 0.5))`` multiplies, without
    a mean; both clamp. Read in kornia's source as of today; that the paper ran such a version is unverified.

    Raises:
        UserError: a share out of range.
    """

    shift: int = 0
    flip: bool = False
    crop_scale: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    equalize: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise UserError(f"augmentation.crop_scale is {self.crop_scale}: it is a share, above 0 and at most 1.")
        for key in _SHARES:
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"augmentation.{key} is {getattr(self, key)}: it is a share of the images, 0 to 1.")

    def __call__(
        self, images: Tensor, generator: torch.Generator, own: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,C,H,W) in [0,1], on the CPU.

        Args:
            generator: of the batch, for ``flip`` and ``shift``.
            own: B generators of the images, for the other changes; None: seeded by ``generator``.
        """
        images = self._shifted(self._flipped(images, generator), generator)
        if self.crop_scale == 1 and not any(getattr(self, key) for key in _SHARES):
            return images
        sources = _sources(len(images), generator) if own is None else own
        return torch.stack([self._changed(image, source) for image, source in zip(images, sources, strict=True)])

    def _flipped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.flip:
            return images
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)

    def _shifted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.shift:
            return images
        height, width = images.shape[-2:]
        padded = F.pad(images, (self.shift,) * 4, mode="replicate")
        corner = torch.randint(2 * self.shift + 1, (2, len(images), 1), generator=generator)
        rows, columns = corner[0] + torch.arange(height), corner[1] + torch.arange(width)
        picked = padded.permute(0, 2, 3, 1)[
            torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]
        ]
        return picked.permute(0, 3, 1, 2).contiguous()

    def _changed(self, image: Tensor, source: torch.Generator) -> Tensor:
        """(C,H,W) cropped, then each change where its draw says so; the draws of one do not depend on the others."""
        chosen = torch.rand(len(_SHARES), generator=source)
        asked = [bool(draw < getattr(self, key)) for draw, key in zip(chosen, _SHARES, strict=True)]
        if self.crop_scale < 1:
            image = _crop(image, self.crop_scale, source)
        dark, flat, even, grey = asked
        if dark:
            image = image - _HALF
        image = image.clamp(0.0, 1.0)
        if flat:
            image = image * _HALF
        from torchvision.transforms.v2 import functional as vision  # a second to import, which flip and shift spare

        if even:
            image = vision.equalize(image)
        if grey and len(image) == 3:
            image = vision.rgb_to_grayscale(image, num_output_channels=3)
        return image.clamp(0.0, 1.0)


def _sources(number: int, generator: torch.Generator) -> list[torch.Generator]:
    seeds = torch.randint(2**62, (number,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _crop(image: Tensor, scale: float, source: torch.Generator) -> Tensor:
    """A crop of a random share and aspect (Szegedy et al. 2015, section 6), back at the size of the image."""
    from torchvision.transforms.v2 import functional as vision

    full_height, full_width = image.shape[-2:]
    draws = torch.rand(_ATTEMPTS, 4, generator=source, dtype=torch.float64).tolist()
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    for share, aspect, down, right in draws:
        area, ratio = full_height * full_width * (scale + (1 - scale) * share), math.exp(low + (high - low) * aspect)
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= full_height and 0 < width <= full_width:
            top, left = int(down * (full_height - height + 1)), int(right * (full_width - width + 1))
            size = [full_height, full_width]
            cropped: Tensor = vision.resized_crop(image, top, left, height, width, size, antialias=True)
            return cropped
    return image
