"""JPEG as a defence: Pillow's codec forward, and a smooth one backward.

The codec's own gradient is 0 nearly everywhere. That of the identity (straight through) spends a change on what the
codec throws away, and makes it look robust: on faces of 64 px PGD by it leaves four times as many images right.

Shapes: B images, C channels, H height, W width; pixels in [0,1].
"""

import io
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.utils.errors import UserError

_SIDE = 8  # of the blocks that are transformed
_CUBIC = 0.9  # share of the cubic rounding
_SUBSAMPLING = 2  # as Pillow counts: 4:2:0, colour at half the side
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-T T.871


class JPEG(nn.Module):
    """Compression to JPEG and back by Pillow's codec, with the gradient of `smooth`.

    Args:
        quality: from 1 to 95, as Pillow counts; 4:2:0 subsampling for colour.

    Raises:
        UserError: another quality.
    """

    randomised = False

    def __init__(self, *, quality: int = 75) -> None:
        super().__init__()
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 95:
            raise UserError(f"quality of the JPEG is {quality!r}: expected a whole number from 1 to 95.")
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) with 1 or 3 channels -> the same."""
        compressed = self.compressed(images)
        if not (images.requires_grad and torch.is_grad_enabled()):
            return compressed
        smooth = self.smooth(images)
        return compressed + (smooth - smooth.detach())

    def compressed(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1] after the codec, without a gradient.

        Raises:
            ValueError: neither 1 nor 3 channels.
        """
        if images.shape[1] not in (1, 3):
            raise ValueError(f"JPEG holds 1 or 3 channels, but the images have {images.shape[1]}")
        pixels = (images.detach().clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8).numpy()
        rows = [torch.from_numpy(self._coded(image)) for image in pixels]
        return torch.stack(rows).to(images) / 255.0 if rows else images.detach().clone()

    def smooth(self, images: Tensor) -> Tensor:
        """What `compressed` gives, nearly and with a gradient: rounding is ``round(x) + (x - round(x))^3`` (Shin and
        Song 2017, "JPEG-resistant adversarial images"), which moves where a coefficient is about to change, and for a
        tenth ``x``, without which PGD of radii that are large beside the steps of the codec leaves more right.
        """
        height, width = images.shape[-2:]
        by = _SIDE if images.shape[1] == 1 else 2 * _SIDE
        full = F.pad(255.0 * images, (0, -width % by, 0, -height % by), mode="replicate")
        bright, coloured = (table.to(full) for table in _tables(self.quality))
        if images.shape[1] == 1:
            decoded = _quantised(full - 128.0, bright) + 128.0
        else:
            to_ycc = torch.tensor(_TO_YCC, dtype=full.dtype, device=full.device)
            planes = torch.einsum("ij,bjhw->bihw", to_ycc, full)
            luma = _quantised(planes[:, :1] - 128.0, bright) + 128.0
            chroma = _quantised(F.avg_pool2d(planes[:, 1:], 2), coloured)
            chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
            decoded = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), torch.cat([luma, chroma], 1))
        return decoded[..., :height, :width] / 255.0

    def _coded(self, image: "np.ndarray[Any, np.dtype[np.uint8]]") -> "np.ndarray[Any, np.dtype[np.uint8]]":
        grey = len(image) == 1
        stored = _stored(image[0] if grey else image.transpose(1, 2, 0), self.quality)
        pixels = np.asarray(Image.open(stored))
        return pixels[None].copy() if grey else pixels.transpose(2, 0, 1).copy()

    def extra_repr(self) -> str:
        return f"quality={self.quality}"


def _stored(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", quality: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=_SUBSAMPLING)
    return file


@cache
def _tables(quality: int) -> tuple[Tensor, Tensor]:
    """Steps (8,8) to which the codec rounds the coefficients of brightness and of colour."""
    tables: Any = Image.open(_stored(np.zeros((_SIDE, _SIDE, 3), np.uint8), quality))
    bright, coloured = (torch.tensor(tables.quantization[place]).view(_SIDE, _SIDE) for place in (0, 1))
    return bright, coloured


def _quantised(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (B,C,H,W) whose blocks are transformed (DCT), rounded to multiples of ``table``, and transformed back."""
    places = torch.arange(_SIDE, dtype=planes.dtype, device=planes.device)
    cosines = 0.5 * torch.cos((2 * places + 1) * places.unsqueeze(1) * (math.pi / (2 * _SIDE)))
    cosines[0] /= math.sqrt(2)
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // _SIDE, _SIDE, width // _SIDE, _SIDE).transpose(3, 4)
    steps = cosines @ blocks @ cosines.T / table
    whole = steps.round().detach()
    apart = steps - whole
    restored: Tensor = cosines.T @ ((whole + _CUBIC * apart**3 + (1 - _CUBIC) * apart) * table) @ cosines
    return restored.transpose(3, 4).reshape(planes.shape)
