"""Resampling by an FIR filter and layers with the activation of StyleGAN2, in plain PyTorch.

Both have kernels of their own in the published code (``upfirdn2d``, ``fused_bias_act``), which compute just this.

Shapes: B batch, C channels, H height, W width; K taps a side of a filter.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAIN, SLOPE = math.sqrt(2.0), 0.2  # of the activation, ``GAIN * leaky_relu(x + bias, SLOPE)``
_TAPS = (1.0, 3.0, 3.0, 1.0)


def upfirdn(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros between the pixels, a border, a convolution with ``kernel``, and every ``down``-th pixel of the result.

    Args:
        x: (B,C,H,W).
        kernel: (K,K), turned by 180 degrees before the products, as a convolution is defined.
        up: each pixel is followed by ``up - 1`` zeros in both directions.
        padding: zeros before and after each row and column, behind the last of these; below 0: as many are cut off.

    Returns:
        (B,C,H',W') with H' = (H up + sum(padding) - K) // down + 1.
    """
    batch, channels, height, width = x.shape
    if up > 1:
        spread = x.new_zeros(batch, channels, height, up, width, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.view(batch, channels, height * up, width * up)
    border = padding[0] if padding[0] == padding[1] >= 0 else 0
    if padding != (border, border):
        x = F.pad(x, 2 * padding)
    stencil = kernel.to(x).flip(0, 1).expand(channels, 1, -1, -1)
    # A border that the convolution adds itself saves a copy of the features.
    return F.conv2d(x, stencil, stride=down, padding=border, groups=channels)


def fir(taps: Sequence[float] = _TAPS, *, gain: float = 1.0) -> Tensor:
    """The filter (K,K) of which ``taps`` are a row and a column, of sum ``gain``."""
    row = torch.tensor(taps)
    kernel = row[:, None] * row[None, :]
    return gain * kernel / kernel.sum()


class Blur(nn.Module):
    """The filter behind a transposed convolution of stride 2, which makes 2H + 1 pixels of H: it leaves 2H."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir(gain=4.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,2H+1,2W+1) -> (B,C,2H,2W)."""
        return upfirdn(x, self.kernel, padding=(1, 1))


class Upsample(nn.Module):
    """An image of twice the height and width."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir(gain=4.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,2H,2W)."""
        return upfirdn(x, self.kernel, up=2, padding=(2, 1))


class EqualLinear(nn.Module):
    """A linear layer whose weights are stored with a variance of one and scaled as they are used (Karras et al. 2018).

    Args:
        rate: factor of the learning rate, by which weights and bias are multiplied.
        activated: with the activation behind it.
    """

    def __init__(self, width: int, out: int, *, bias: float = 0.0, rate: float = 1.0, activated: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.scale, self.rate, self.activated = rate / math.sqrt(width), rate, activated

    def forward(self, x: Tensor) -> Tensor:
        """(N,width) -> (N,out)."""
        weight, bias = self.scale * self.weight, self.rate * self.bias
        x = F.linear(x, weight, bias)
        return GAIN * F.leaky_relu(x, SLOPE) if self.activated else x
