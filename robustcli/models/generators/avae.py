"""A-VAE, an adversarial variational autoencoder with a style decoder, as the purification paper's rival runs it.

Layers, sizes and quirks are those of the released version (Serez et al. 2025, after Zhou et al., ECCV 2020, "Manifold
projection for adversarial defense on face recognition"): its instance norms are computed and thrown away, so there are
none; the first block ignores its input for a learned constant; a map of noise a block is drawn beside the latent.
Names of the weights were inferred from its outputs on known weights (64 px), where ours differ by rounding alone.

Shapes: B batch, C channels, H height, W width, D latent channels, S style, k kernel size.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.generators.trained import Trained
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

_SLOPE = 0.2
# Sizes of the released models: the image is averaged to 32 x 32, and more blocks of 256 make larger ones.
PUBLISHED = {"encoder": [256, 512, 1024], "style": 512, "layers": 4}


class Code(NamedTuple):
    """A code of images: ``skip`` (B,c,h,w) of the first block, ``mean`` and ``log_variance`` (B,D,h,w)."""

    skip: Tensor
    mean: Tensor
    log_variance: Tensor


class AVAE(Trained):
    """An A-VAE with random weights; `load` reads one from a file.

    Args:
        configuration: ``resolution`` (C,H,W); ``pool``: the image is averaged over so many pixels a side first;
            ``encoder``: channels of its blocks, each of which halves the side, the last twice those of the latent;
            ``decoder``: channels of the style blocks, the first at the latent's side and each further one at twice the
            side; ``style``: width and ``layers`` of the network from latent to style.
        temperature: of the draw from the posterior, 0.6 in the released evaluation.
        critic: build the critic of the training too.
        seed: of the weights; the global generator is left alone.

    Raises:
        UserError: sizes that do not fit together.
    """

    kind: ClassVar[str] = "avae"
    helper: ClassVar[str | None] = "critic."

    def __init__(
        self, configuration: Mapping[str, Any], *, temperature: float = 0.6, critic: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self._configuration = {key: configuration[key] for key in ("resolution", "pool", "decoder", *PUBLISHED)}
        channels, height, width = (int(side) for side in configuration["resolution"])
        self.resolution, self.temperature = (channels, height, width), temperature
        self.pool, encoder, decoder = int(configuration["pool"]), configuration["encoder"], configuration["decoder"]
        by = self.pool * 2 ** len(encoder)
        _check(self.resolution, by, encoder, decoder, temperature)
        self.latent_shape = (encoder[-1] // 2, height // by, width // by)
        self.map_shapes = tuple((1, height // by * 2**i, width // by * 2**i) for i in range(len(decoder)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = _Encoder([channels, *encoder])
            self.generator = _Decoder(
                decoder, channels, self.latent_shape[1:], int(configuration["style"]), encoder[0], len(encoder) - 1
            )
            widths = [math.prod(self.latent_shape), *[int(configuration["style"])] * int(configuration["layers"])]
            mapping: list[nn.Module] = [_PixelNorm()]
            for here, there in pairwise(widths):
                mapping += [_EqualLinear(here, there), nn.LeakyReLU(_SLOPE)]
            self.style = nn.Sequential(*mapping)
            if critic:
                self.critic = Critic(self.resolution, [*reversed(decoder[1:]), decoder[0]])
        self.eval()

    @property
    def configuration(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, Sequence) else value for key, value in self._configuration.items()
        }

    def encode(self, images: Tensor) -> Code:
        """Images (B,C,H,W) in [0,1] -> their code; deterministic.

        Raises:
            ValueError: images of another shape than ``resolution``.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.resolution:
            raise ValueError(f"images are {tuple(images.shape)}: this generator takes (B, *{self.resolution})")
        code: Code = self.encoder(F.avg_pool2d(2.0 * images - 1.0, self.pool))
        return code

    def decode(self, code: Code, eps: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Images (B,C,H,W), not clamped.

        Args:
            eps: (B,D,h,w) standard normal; the latent is ``mean + T eps exp(log_variance / 2)``.
            maps: standard-normal maps of noise, one a block, (B,1,h,w) or (1,1,h,w).
        """
        z = code.mean + self.temperature * eps * torch.exp(0.5 * code.log_variance)
        made: Tensor = self.generator(self.style(z.flatten(1)), code.skip, maps)
        return 0.5 * made + 0.5

    def drawn(self, images: Tensor, *, seed: int) -> tuple[Code, Tensor]:
        """Code of ``images`` and the images of one draw that ``seed`` names, not clamped."""
        source, code = generator(seed, "avae"), self.encode(images)
        noise = [
            torch.randn((len(images), *shape), generator=source) for shape in (self.latent_shape, *self.map_shapes)
        ]
        eps, *maps = (each.to(images) for each in noise)
        return code, self.decode(code, eps, maps)

    def figures(self, images: Tensor, *, seed: int) -> Mapping[str, Tensor]:
        code, made = self.drawn(images, seed=seed)
        return {"mse": (made.clamp(0, 1) - images).square().mean((1, 2, 3)), "kl": divergence(code)}

    def rebuilt(self, images: Tensor, *, seed: int) -> Tensor:
        return self.drawn(images, seed=seed)[1].clamp(0, 1)

    def sampled(self, count: int, *, seed: int) -> Tensor:
        source = generator(seed, "avae samples")
        device, shapes = self.device, (self.latent_shape, self.generator.skip_shape, *self.map_shapes)
        z, skip, *maps = (torch.randn((count, *shape), generator=source).to(device) for shape in shapes)
        return self.decode(Code(0 * skip, z, torch.full_like(z, -30.0)), z, maps).clamp(0, 1)

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """Those of the released models: 64, 128 or 256 px by the number of blocks."""
        blocks = len({name.split(".")[2] for name in state if name.startswith("generator.progression.")})
        return published(4 * 2 ** (blocks - 1)) if blocks in (5, 6, 7) else None


def published(size: int) -> dict[str, Any]:
    """The configuration of the released model for images of ``size`` pixels a side: 64, 128 or 256."""
    decoder = [512, 512, 512, *[256] * (int(math.log2(size)) - 5), 128]
    return {"resolution": [3, size, size], "pool": size // 32, "decoder": decoder, **PUBLISHED}


def divergence(code: Code) -> Tensor:
    """KL (B,) of the posterior to a standard normal, the mean over the entries of the latent, in nats."""
    mean, log_variance = code.mean, code.log_variance
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).flatten(1).mean(1)


class Critic(nn.Module):
    """The critic of the training: images (B,C,H,W) in [0,1] -> (B,), higher for real ones."""

    def __init__(self, resolution: tuple[int, int, int], widths: Sequence[int]) -> None:
        super().__init__()
        sides, layers = min(resolution[1:]), [_EqualConv(resolution[0], widths[0], 1), nn.LeakyReLU(_SLOPE)]
        for here, there in zip(widths, [*widths[1:], widths[-1]], strict=True):
            if sides < 4:
                break
            layers += [_EqualConv(here, there, 3), nn.LeakyReLU(_SLOPE), nn.AvgPool2d(2)]
            sides //= 2
        self.layers = nn.Sequential(*layers)
        shrunk = math.prod(self.layers(torch.zeros(1, *resolution)).shape[1:])
        self.last = _EqualLinear(shrunk, 1)

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.last(self.layers(2.0 * images - 1.0).flatten(1)).flatten()
        return value


class _Equal(nn.Module):
    """A layer whose stored weights, under ``weight_orig``, are scaled by sqrt(2 / fan-in) in each pass (equalised rate,
    Karras et al. 2018)."""

    def __init__(self, weight: Tensor, bias: int | None = None) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(weight)
        if bias is not None:
            self.bias = nn.Parameter(torch.zeros(bias))
        self.gain = math.sqrt(2.0 / math.prod(weight.shape[1:]))

    @property
    def weight(self) -> Tensor:
        return self.gain * self.weight_orig


class _EqualConv(nn.Module):
    """Same padding; (B,I,H,W) -> (B,O,H/stride,W/stride)."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.stride, self.padding = (
            _Equal(torch.randn(out, channels, kernel, kernel), out),
            stride,
            kernel // 2,
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias, stride=self.stride, padding=self.padding)


class _EqualLinear(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = _Equal(torch.randn(out, width), out)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight, self.linear.bias)


class _PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class _Blur(nn.Module):
    """The 3 x 3 binomial filter behind an up-sampling convolution; files have one a channel, and its mirror image."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        side = torch.tensor([1.0, 2.0, 1.0])
        kernel = (side[:, None] * side[None, :] / 16.0).repeat(channels, 1, 1, 1)
        self.register_buffer("weight", kernel)
        self.register_buffer("weight_flip", kernel.flip(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=x.shape[1])


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for number, (here, there) in enumerate(pairwise(widths), start=2):
            self.add_module(f"conv{number}", _EncoderBlock(here, there))  # released files begin with conv2

    def forward(self, x: Tensor) -> Code:
        first, *rest = self.children()
        skip = x = first(x)
        for block in rest:
            x = block(x)
        mean, log_variance = x.chunk(2, dim=1)
        return Code(skip, mean, log_variance)


class _EncoderBlock(nn.Module):
    """(B,I,H,W) -> (B,O,H/2,W/2), two convolutions with a leaky ReLU behind each; no norm, see the module."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _EqualConv(channels, out, 3), _EqualConv(out, out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), _SLOPE)), _SLOPE)


class _Decoder(nn.Module):
    def __init__(
        self, widths: Sequence[int], channels: int, grid: tuple[int, ...], style: int, skip: int, joins: int
    ) -> None:
        super().__init__()
        self.joins = joins  # number of the block whose output the skip, of the same side, is put beside
        self.skip_shape = (skip, *(side * 2**joins for side in grid))
        blocks: list[nn.Module] = [_StyleBlock(_Constant(widths[0], grid), widths[0], style)]
        for number, (here, there) in enumerate(pairwise(widths)):
            joined = here + (skip if number == joins else 0)
            # Fused behind the skip: so it is in the released model of 64 px, for the others it is unverified.
            blocks.append(_StyleBlock(_Upsampled(joined, there, fused=number >= joins), there, style))
        self.progression, self.to_rgb = nn.ModuleList(blocks), _EqualConv(widths[-1], channels, 1)

    def forward(self, style: Tensor, skip: Tensor, maps: Sequence[Tensor]) -> Tensor:
        x = style
        for number, (block, noise) in enumerate(zip(self.progression, maps, strict=True)):
            x = block(x, style, noise)
            if number == self.joins:
                x = torch.cat([x, skip], dim=1)
        made: Tensor = self.to_rgb(x)
        return made


class _StyleBlock(nn.Module):
    """Twice a convolution, noise, leaky ReLU and AdaIN; ``first`` is the first convolution, or the constant."""

    def __init__(self, first: nn.Module, out: int, style: int) -> None:
        super().__init__()
        self.conv1 = first
        self.noise1, self.adain1 = _Equal(torch.zeros(1, out, 1, 1)), _AdaIN(out, style)
        self.conv2 = _EqualConv(out, out, 3)
        self.noise2, self.adain2 = _Equal(torch.zeros(1, out, 1, 1)), _AdaIN(out, style)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x) + self.noise1.weight * noise, _SLOPE)
        x = self.adain1(x, style)
        x = F.leaky_relu(self.conv2(x) + self.noise2.weight * noise, _SLOPE)
        styled: Tensor = self.adain2(x, style)
        return styled


class _Constant(nn.Module):
    def __init__(self, channels: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, *grid))

    def forward(self, x: Tensor) -> Tensor:
        return self.input.expand(len(x), -1, -1, -1)


class _Upsampled(nn.Sequential):
    """Twice the side: nearest neighbours, a convolution and the blur; or (``fused``) the first two in one."""

    def __init__(self, channels: int, out: int, *, fused: bool) -> None:
        nearest: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="nearest"), _EqualConv(channels, out, 3)]
        super().__init__(*([_FusedConv(channels, out, 3)] if fused else nearest), _Blur(out))


class _FusedConv(nn.Module):
    """A transposed convolution of stride 2 whose kernel is the mean of four shifts of its weight (Karras et al.
    2018).
    """

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(channels, out, kernel, kernel)),
            nn.Parameter(torch.zeros(out)),
        )
        self.gain = math.sqrt(2.0 / (channels * kernel**2))

    def forward(self, x: Tensor) -> Tensor:
        wide = F.pad(self.gain * self.weight, [1, 1, 1, 1])
        shifts = (wide[:, :, 1:, 1:], wide[:, :, :-1, 1:], wide[:, :, 1:, :-1], wide[:, :, :-1, :-1])
        return F.conv_transpose2d(x, sum(shifts[1:], shifts[0]) / 4.0, self.bias, stride=2, padding=1)


class _AdaIN(nn.Module):
    """Adaptive instance normalisation (Huang and Belongie 2017): scale and shift of each channel from the style."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.style = _EqualLinear(style, 2 * channels)
        with torch.no_grad():
            self.style.linear.bias[:channels] = 1.0

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        styled: Tensor = scale * F.instance_norm(x) + shift
        return styled


def _check(
    resolution: tuple[int, int, int], by: int, encoder: Sequence[int], decoder: Sequence[int], temperature: float
) -> None:
    _, height, width = resolution
    if height % by or width % by:
        raise UserError(
            f"an A-VAE of these sizes shrinks images to 1/{by}, which {height} x {width} is not divisible by."
        )
    if encoder[-1] % 2:
        raise UserError(f"generator.encoder ends in {encoder[-1]}: its half is that of the latent, so it must be even.")
    if by != 2 ** (len(decoder) - 1):
        needed = int(math.log2(by)) + 1
        raise UserError(f"generator.decoder has {len(decoder)} blocks, but from 1/{by} to the image it takes {needed}.")
    if not temperature >= 0:
        raise UserError(f"temperature is {temperature}: expected at least 0; 0.6 is usual.")
