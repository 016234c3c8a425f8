"""Changes of training images that leave their label what it is.

Shapes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random shifts and mirrors, drawn for each image.

    Args:
        shift: most pixels up, down, left and right; what comes in is the repeated border.
        flip: mirror half of the images left to right; for digits and other writing it is wrong.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W), on the CPU."""
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
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
