"""StyleGAN2 (Karras et al., arXiv 1912.04958) in plain PyTorch, with the names of the weights that its ports share.

Shapes: B batch, C and O channels, H height, W width, S side of the image; L latents, coarse to fine, of D numbers;
N vectors.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from robustcli.models.generators.upfirdn import GAIN, SLOPE, Blur, EqualLinear, Upsample
from robustcli.utils.errors import UserError

_SIDES = tuple(2**power for power in range(2, 11))
_RATE = 0.01  # of the mapping's weights


class StyleGAN2(nn.Module):
    """A StyleGAN2 with random weights, in eval mode; `load` reads one from a file.

    Latent i is read by the layers in their order: 0 by the convolution at 4 x 4, 1 by its colours and by the first
    convolution at 8 x 8, and so on; the last by the last colours alone.

    Args:
        size: S, a power of two from 4 to 1024.
        style_dim: D.
        channels: of each side from 4 to S; None: the published 512, from 128 pixels on ``32768 / side``.
        mapping_layers: of the network from z to w.
        seed: of the weights; the global generator is left alone.

    Attributes:
        latents: L = 2 log2(S) - 2.

    Raises:
        UserError: another size, or another number of ``channels``.
    """

    def __init__(
        self,
        size: int = 1024,
        *,
        style_dim: int = 512,
        channels: Sequence[int] | None = None,
        mapping_layers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sides = _SIDES[: check_side(size) - 1]
        wide = [min(512, 32768 // side) for side in sides] if channels is None else list(channels)
        if len(wide) != len(sides):
            raise UserError(f"channels of a StyleGAN2 are {wide}: expected {len(sides)}, for sides from 4 to {size}.")
        self.size, self.style_dim, self.channels, self.latents = size, style_dim, tuple(wide), 2 * len(sides)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            mapping = [EqualLinear(style_dim, style_dim, rate=_RATE, activated=True) for _ in range(mapping_layers)]
            self.style = nn.Sequential(PixelNorm(), *mapping)
            self.input = Constant(wide[0])
            self.conv1 = StyledConv(wide[0], wide[0], style_dim)
            self.to_rgb1 = ToRGB(wide[0], style_dim)
            self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
            for before, here in pairwise(wide):
                self.convs += [StyledConv(before, here, style_dim, up=True), StyledConv(here, here, style_dim)]
                self.to_rgbs.append(ToRGB(here, style_dim, up=True))
            for layer, side in enumerate([sides[0], *(side for side in sides[1:] for _ in range(2))]):
                self.noises.register_buffer(f"noise_{layer}", torch.randn(1, 1, side, side))
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> "StyleGAN2":
        """A frozen StyleGAN2 from a file; see `robustcli.models.generators.style_files`."""
        from robustcli.models.generators.style_files import load_stylegan2

        return load_stylegan2(path)

    def mapping(self, z: Tensor) -> Tensor:
        """Standard-normal (..., D) -> codes w (..., D).

        A factor on z changes nothing: it is divided by its length first, so that there is no temperature.
        """
        found: Tensor = self.style(z.reshape(-1, self.style_dim))
        return found.view(z.shape)

    def forward(self, codes: Tensor, *, checkpoint: bool = False) -> Tensor:
        """Synthesis with the noise of the file: codes (B,L,D) -> images (B,3,S,S), mostly in [-1,1], not clamped.

        All blocks run, also where a smaller image is needed than they make. The image is a sum over the blocks, each
        brought to the next size by the filter; what a block adds has a mean of its own in every cell of pixels and
        depends on the layers before it by leaky ReLUs, so that no mean over cells of S pixels is known from the blocks
        below it: stopping there gives another image.

        Args:
            checkpoint: keep the inputs of each block alone for the gradient, and compute the rest again.

        Raises:
            ValueError: codes of another shape.
        """
        if codes.ndim != 3 or tuple(codes.shape[1:]) != (self.latents, self.style_dim):
            expected = f"(B,{self.latents},{self.style_dim})"
            raise ValueError(f"codes are {tuple(codes.shape)}: this StyleGAN2 takes {expected}")
        x = self.conv1(self.input(len(codes)), codes[:, 0], self._noise(0))
        image: Tensor = self.to_rgb1(x, codes[:, 1])
        for block in range(len(self.to_rgbs)):
            run, given = self._block, (block, x, image, codes[:, 2 * block + 1 : 2 * block + 4])
            # Nothing is drawn, so there is no state of a generator to keep.
            again = partial(recompute, run, use_reentrant=False, preserve_rng_state=False) if checkpoint else run
            x, image = again(*given)
        return image

    def _block(self, block: int, x: Tensor, image: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Twice the side: two convolutions, and their colours added to the image; codes (B,3,D)."""
        for place in range(2):
            layer = 2 * block + place
            x = self.convs[layer](x, codes[:, place], self._noise(layer + 1))
        return x, self.to_rgbs[block](x, codes[:, 2], image)

    def _noise(self, layer: int) -> Tensor:
        return self.noises.get_buffer(f"noise_{layer}")

    def extra_repr(self) -> str:
        return f"size={self.size}, latents={self.latents}"


def check_side(size: int) -> int:
    """The base-2 logarithm of the side of a StyleGAN2; `UserError` for a side that none has."""
    if size not in _SIDES:
        raise UserError(f"size of a StyleGAN2 is {size}: expected one of {', '.join(map(str, _SIDES))}.")
    return _SIDES.index(size) + 2


class PixelNorm(nn.Module):
    """(N,D) divided by the root of the mean of its squares."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Constant(nn.Module):
    """The learned input (1,C,4,4) of the first layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, count: int) -> Tensor:
        constant: Tensor = self.input.expand(count, -1, -1, -1)
        return constant


class ModulatedConv2d(nn.Module):
    """Weights (1,O,C,k,k) of a convolution and the layer that makes of a latent the scale of each input channel.

    Args:
        up: transposed, of stride 2, and filtered behind it: twice the side.
    """

    def __init__(self, channels: int, out: int, kernel: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out, channels, kernel, kernel))
        self.modulation = EqualLinear(style_dim, channels, bias=1.0)
        self.scale, self.up = 1.0 / math.sqrt(channels * kernel**2), up
        if up:
            self.blur = Blur()

    def forward(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) and codes (B,D) -> features (B,O,H,W) or (B,O,2H,2W), and their demodulation (B,O).

        The features are still to be divided by the norm of the scaled weights (Karras et al. 2020, section 2.2), that
        is multiplied by the demodulation. Scales of the input in place of those of the weights: the same numbers, one
        convolution for the whole batch, and no gradient of weights, which would be half of a backward pass.
        """
        weight, style = self.weight[0], self.scale * self.modulation(code)
        norms = F.linear(style.square(), weight.square().sum((2, 3)))
        x = x * style[:, :, None, None]
        if self.up:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        return x, torch.rsqrt(norms + 1e-8)


class Noise(nn.Module):
    """The learned strength of the noise of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Activation(nn.Module):
    """The bias before the activation of a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class StyledConv(nn.Module):
    """A modulated convolution of 3 x 3, noise and activation."""

    def __init__(self, channels: int, out: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(channels, out, 3, style_dim, up=up)
        self.noise, self.activate = Noise(), Activation(out)

    def forward(self, x: Tensor, code: Tensor, noise: Tensor) -> Tensor:
        """(B,C,H,W), codes (B,D) and noise of the output's side (1,1,H',W') -> (B,O,H',W')."""
        x, demodulation = self.conv(x, code)
        # GAIN leaky_relu(x d + noise + bias): the gain goes into the three terms, and all is done in two passes and in
        # place, for at the finest sides memory bounds the time, and what is not kept need not be held for a gradient.
        bias = GAIN * self.activate.bias.view(1, -1, 1, 1)
        x = torch.addcmul(bias, x, GAIN * demodulation[:, :, None, None])
        return F.leaky_relu_(x.add_(GAIN * self.noise.weight * noise), SLOPE)


class ToRGB(nn.Module):
    """The colours of a block, by a modulated convolution of 1 x 1 without demodulation, added to the image so far."""

    def __init__(self, channels: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(channels, 3, 1, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Upsample()

    def forward(self, x: Tensor, code: Tensor, image: Tensor | None = None) -> Tensor:
        """(B,C,H,W), codes (B,D) and an image (B,3,H/2,W/2) -> (B,3,H,W)."""
        conv = self.conv
        weight = conv.scale * conv.weight[0, :, :, 0, 0] * conv.modulation(code)[:, None]  # (B,3,C)
        colours: Tensor = (weight @ x.flatten(2)).view(len(x), 3, *x.shape[2:]) + self.bias
        return colours if image is None else colours + self.upsample(image)
