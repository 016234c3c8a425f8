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
    """Residual cell of the encoder: two 3x3 convolutions; a cell that halves the grid also changes the channels.

    Args:
        out: channels of a cell that halves the grid; None for a cell that keeps both.
    """

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
        output: Tensor = self.skip_connection(x) + _SHARE * self.residual(x)
        return output


class DecoderCell(nn.Module):
    """Residual cell of the decoder: an inverted bottleneck with a depthwise 5x5 convolution.

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
            return self._folded_forward(x)
        output: Tensor = self.skip_connection(x) + _SHARE * self.residual(x)
        return output

    def _folded_forward(self, x: Tensor) -> Tensor:
        """Forward pass with frozen weights: batch norms folded into the convolutions, fewer passes over memory.

        A 1x1 convolution and an activation map equal neighbours to equal ones, so the grid is doubled after both: a
        quarter of their work.
        """
        (widen, deep, narrow), excite = self._folded.convolutions, self.residual[-1]
        assert isinstance(excite, SqueezeExcite)
        spare = not torch.is_grad_enabled()  # no backward pass reads the input of the activation: it is overwritten
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
        output: Tensor = self.conv(F.silu(x))
        return output


class _Double(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        return output


class EncoderCombiner(nn.Module):
    """The encoder's feature plus a 1x1 convolution of the decoder's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels, channels, 1)

    def forward(self, feature: Tensor, x: Tensor) -> Tensor:
        """Two features (B,C,H,W) -> the same shape."""
        output: Tensor = feature + self.conv(x)
        return output


class DecoderCombiner(nn.Module):
    """A 1x1 convolution of the decoder's feature and the latent, side by side."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.conv = NormedConv2d(channels + latent, channels, 1)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """(B,C,H,W) and (B,D,H,W) -> (B,C,H,W)."""
        output: Tensor = self.conv(torch.cat([x, latent], dim=1))
        return output


class FlowBlock(nn.Module):
    """Two steps of a volume-preserving autoregressive flow of a latent, in opposite orders of the places."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.cell1, self.cell2 = _FlowCell(latent, mirrored=False), _FlowCell(latent, mirrored=True)

    def forward(self, latent: Tensor) -> Tensor:
        """(B,D,H,W) -> the same shape."""
        output: Tensor = self.cell2(self.cell1(latent))
        return output


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
        # The Jacobian is triangular with ones on the diagonal: its log-determinant is 0 and needs no computation.
        output: Tensor = latent - self.layers(latent)
        return output


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
