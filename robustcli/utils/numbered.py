"""Numbers as images of one pixel: what stands for an image where a model looks its embedding up by number.

Shapes: B batch.
"""

import torch
from torch import Tensor

_MOST = 1 << 20  # a power of two: number / _MOST is exact in float32


def as_pixels(numbers: Tensor) -> Tensor:
    """Numbers (B,) long, from 0 to 2^20 -> (B,3,1,1) float32 in [0,1]."""
    return (numbers.float() / _MOST).view(-1, 1, 1, 1).repeat(1, 3, 1, 1)


def numbers_in(images: Tensor) -> Tensor:
    """The numbers (B,) long that images (B,C,H,W) carry."""
    return (images.detach().flatten(1)[:, 0].double() * _MOST).round().to(torch.long)
