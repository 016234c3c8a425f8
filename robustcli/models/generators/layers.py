"""Convolutions with weight normalisation, squeeze-and-excite, and the soft clamp of NVAE.

Shapes: B batch, C channels, H height, W width, O output channels, k kernel size.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_clamp(value: Tensor) -> Tensor:
    """``5 tanh(value / 5)``, which keeps means and log scales of the latents within (-5,5)."""
    return 5.0 * torch.tanh(value / 5.0)


class NormedConv2d(nn.Module):
    """A convolution with weight normalisation over the output channels (Salimans and Kingma 2016), same padding.

    The weights have the names of `torch.nn.utils.parametrizations.weight_norm`, so checkpoints fit; but of frozen
    weights the product is kept and not made anew in every pass, of which an attack does hundreds.
    """

    bias: nn.Parameter

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        plain = nn.Conv2d(channels, out, kernel)  # its draws of weight and bias
        assert plain.bias is not None
        self.bias = nn.Parameter(plain.bias.detach())
        weight = plain.weight.detach()
        norm = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.parametrizations = nn.ModuleDict({"weight": _Polar(norm, weight)})
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """(O,C,k,k), of norm ``original0`` an output channel."""
        polar = self.parametrizations["weight"]
        assert isinstance(polar, _Polar)
        length, direction = polar.original0, polar.original1
        if length.requires_grad or direction.requires_grad:
            return torch._weight_norm(direction, length, 0)
        state = (length._version, direction._version, length.data_ptr(), direction.data_ptr())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, torch._weight_norm(direction, length, 0)
        return self._kept[1]

    def forward(self, x: Tensor, *, first: int | None = None) -> Tensor:
        """(B,C,H,W) -> (B,O,H/stride,W/stride); ``first``: only that many of the channels are computed."""
        weight, bias = self.weight, self.bias
        return F.conv2d(x, weight[:first], bias[:first], stride=self.stride, padding=self.padding)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None  # a move to another device or type replaces the data without telling
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class _Polar(nn.Module):
    def __init__(self, norm: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.original0, self.original1 = nn.Parameter(norm), nn.Parameter(weight)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite: each channel times a gate in (0,1) computed from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.linear_1, self.linear_2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> the same shape."""
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,1,1) in (0,1)."""
        return torch.sigmoid(self.linear_2(F.relu(self.linear_1(x.mean((2, 3))))))[:, :, None, None]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with NVAE's constants."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.05)
