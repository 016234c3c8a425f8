"""The cells of NVAE (Vahdat and Kautz, arXiv 2007.03898, figure 3), and its normalising flow.

The names of the weights are those of the published checkpoints.

Shapes: B batch, C channels, H height, W width, E channels within a decoder cell, D channels of a latent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.generators.folded import Folded
from robustcli.models.generators.layers import NormedConv2d, SqueezeExcite, batch_norm

_SHARE = 0.1  # of the residual branch


class EncoderCell(nn.Module):
    """Two 3x3 convolutions beside a skip connection; a cell that halves the grid also changes the channels."""

    def __init__(self, channels: int, out: int | None = None) -> None:
        super().__init__()
        halved = out is not None
        out = out or channels
        self.residual = nn.Sequential(
            batch_norm(channels),
            nn.SiLU(),
            NormedConv2d(channels, out, 3, stride=2 if halved else 1),
            batch_norm(out),
            nn.SiLU(),
            NormedConv2d(out, out, 3),
            SqueezeExcite(out),
        )
        self.skip_connection = _Halve(channels, out) if halved else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> the same shape, or (B,out,H/2,W/2)."""
        found: Tensor = self.skip_connection(x) + _SHARE * self.residual(x)
        return found


class DecoderCell(nn.Module):
    """An inverted bottleneck with a 5x5 convolution of each channel, beside a skip connection.

    Args:
        expansion: E / C, 6 in the tower and 3 after it.
        out: channels of a cell that doubles the grid; None for a cell that keeps both.
    """

    def __init__(self, channels: int, out: int | None = None, *, expansion: int) -> None:
        super().__init__()
        doubled = out is not None
        out, inner = out or channels, expansion * channels
        layers: list[nn.Module] = [nn.UpsamplingNearest2d(scale_factor=2)] if doubled else []
        layers += [
            batch_norm(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            batch_norm(inner),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False),
            batch_norm(inner),
            nn.SiLU(),
            nn.Conv2d(inner, out, 1, bias=False),
            batch_norm(out),
            SqueezeExcite(out),
        ]
        self.residual = nn.Sequential(*layers)
        self.skip_connection = _Double(channels, out) if doubled else nn.Identity()
        self._doubled = doubled
        self._folded = Folded(self.residual)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> the same shape, or (B,out,2H,2W)."""
        if self._folded.possible:
            return self._at_rest(x)
        found: Tensor = self.skip_connection(x) + _SHARE * self.residual(x)
        return found

    def _at_rest(self, x: Tensor) -> Tensor:
        """With frozen weights: the batch norms within the convolutions, and as few passes over memory as there can be.

        Widening and activating neighbours that are copies gives copies, so a grid is doubled after both.
        """
        (widen, deep, narrow), excite = self._folded.convolutions, self.residual[-1]
        assert isinstance(excite, SqueezeExcite)
        spare = not torch.is_grad_enabled()  # what is activated may be overwritten
        inner = F.silu(F.conv2d(x, *widen), inplace=spare)
        if self._doubled:
            inner = F.interpolate(inner, scale_factor=2.0, mode="nearest")
        inner = F.silu(F.conv2d(inner, *deep, padding=2, groups=inner.shape[1]), inplace=spare)
        inner = F.conv2d(inner, *narrow)
        return torch.addcmul(self.skip_connection(x), inner, excite.gate(inner), value=_SHARE)


class _Halve(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels, out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.silu(x))
        return found


class _Double(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        return found


class EncoderCombiner(nn.Module):
    """The encoder's feature plus a 1x1 convolution of the decoder's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels, channels, 1)

    def forward(self, feature: Tensor, x: Tensor) -> Tensor:
        found: Tensor = feature + self.conv(x)
        return found


class DecoderCombiner(nn.Module):
    """A 1x1 convolution of the decoder's feature and the latent, side by side."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels + latent, channels, 1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        found: Tensor = self.conv(torch.cat([x, latent], dim=1))
        return found


class FlowBlock(nn.Module):
    """Two steps of a volume-preserving autoregressive flow of a latent, in opposite orders of the places."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.cell1, self.cell2 = _FlowCell(latent, mirrored=False), _FlowCell(latent, mirrored=True)

    def forward(self, latent: Tensor) -> Tensor:
        """(B,D,H,W) -> the same shape."""
        found: Tensor = self.cell2(self.cell1(latent))
        return found


class _FlowCell(nn.Module):
    """``z - f(z)``, where f at a place reads only the places before it, row by row."""

    def __init__(self, latent: int, *, mirrored: bool) -> None:
        super().__init__()
        wide = 6 * latent
        # The first layer leaves its own place out, so the others may read theirs and the whole stays autoregressive.
        # In published files the masks stand among the weights, and theirs replace these.
        self.layers = nn.Sequential(
            _MaskedConv2d(latent, wide, 3, own_place=False, mirrored=mirrored),
            nn.ELU(),
            _MaskedConv2d(wide, wide, 5, own_place=True, mirrored=mirrored, groups=wide),
            nn.ELU(),
            _MaskedConv2d(wide, latent, 1, own_place=True, mirrored=mirrored),
        )

    def forward(self, latent: Tensor) -> Tensor:
        found: Tensor = latent - self.layers(latent)
        return found


class _MaskedConv2d(nn.Conv2d):
    mask: Tensor

    def __init__(
        self, channels: int, out: int, kernel: int, *, own_place: bool, mirrored: bool, groups: int = 1
    ) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, groups=groups)
        places = torch.arange(kernel * kernel).view(kernel, kernel)
        middle = kernel * kernel // 2
        seen = (places > middle) if mirrored else (places < middle)
        if own_place:
            seen = seen | (places == middle)
        self.register_buffer("mask", seen.to(self.weight.dtype).expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding, groups=self.groups)
