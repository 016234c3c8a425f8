"""IR-SE-50 with a feature pyramid, the body that the encoders into StyleGAN2's codes share (Richardson et al. 2021).

Shapes: B batch, C channels, H height, W width, D numbers of a code.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_UNITS = (3, 4, 14, 3)
_TAPS = (6, 20, 23)  # the last units of the second to fourth stage


class Unit(nn.Module):
    """A residual unit with squeeze-and-excite: norm, convolution, PReLU, convolution (which halves), norm, gate."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels != out:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            Gate(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return output


class Gate(nn.Module):
    """Each channel times a gate in (0,1) computed from the means of all, by two layers without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * gate


class Pyramid(nn.Module):
    """IR-SE-50 and its three levels of features; a base class of encoders, which read them.

    Args:
        width: channels of the first layer; the published networks have 64. D is eight times that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.style_dim = dim = 8 * width
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        widths = [width * 2**stage for stage in range(len(_UNITS))]
        units: list[nn.Module] = []
        for before, here, count in zip([width, *widths[:-1]], widths, _UNITS, strict=True):
            units += [Unit(before, here, stride=2), *(Unit(here, here, stride=1) for _ in range(count - 1))]
        self.body = nn.Sequential(*units)
        self.latlayer1, self.latlayer2 = nn.Conv2d(dim // 2, dim, 1), nn.Conv2d(dim // 4, dim, 1)

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of D channels, coarse to fine: images (B,3,H,W) in [-1,1] -> (B,D,H/16,W/16), /8 and /4."""
        x, taps = self.input_layer(images), []
        for place, unit in enumerate(self.body):
            x = unit(x)
            if place in _TAPS:
                taps.append(x)
        fine, middle, coarse = taps
        medium = _enlarged(coarse, middle) + self.latlayer1(middle)
        return coarse, medium, _enlarged(medium, fine) + self.latlayer2(fine)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    size: Any = like.shape[2:]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
