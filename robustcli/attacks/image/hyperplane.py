"""Where a linearised classifier changes its mind, and the shortest way there inside [0,1].

Shapes: B batch, C channels, H height, W width, D = C*H*W pixels, K rival classes, Y classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import Slopes

_ROUNDING = 1e-5  # of the largest logit


@dataclass(frozen=True)
class Plane:
    """``gap + slope . move = 0``: where the logits of a rival and of the label are equal, to first order.

    Args:
        gap: (B,) logit of the rival less that of the label; below 0 on the label's side.
        slope: (B,C,H,W), its gradient; zeros where the model gave none.
    """

    gap: Tensor
    slope: Tensor

    def seen_from(self, images: Tensor, origin: Tensor) -> "Plane":
        """The same plane, its gap taken at ``images`` in place of ``origin``."""
        return Plane(self.gap + (self.slope * (images - origin)).flatten(1).sum(1), self.slope)

    def replaced(self, chosen: Tensor, gap: Tensor, slope: Tensor) -> "Plane":
        """Another plane for the samples that are ``chosen`` (B,)."""
        return Plane(torch.where(chosen, gap, self.gap), torch.where(chosen.view(-1, 1, 1, 1), slope, self.slope))

    def shortest_move(self, images: Tensor, norm: str) -> Tensor:
        """(B,C,H,W): the smallest move from ``images`` to the plane within [0,1]; to the nearest corner where the box
        ends before the plane (Croce and Hein 2020, equations 7 and 8).
        """
        slope, start = self.slope.flatten(1), images.flatten(1)
        scale = slope.abs().amax(1, keepdim=True)
        weight = torch.where(scale > 0, slope.abs() / scale, 0.0)
        way = -slope.sign() * self.gap.sign()[:, None]
        room = torch.where(way > 0, 1 - start, start)
        pace = weight if norm == "l2" else (weight > 0).to(weight)
        wanted = torch.where(scale > 0, self.gap.abs()[:, None] / scale, 0.0)
        length = _length(weight, pace, room, wanted)
        return (way * torch.minimum(length * pace, room)).view_as(images)


def misled(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: a wrong logit is above the label's by more than rounding, so that the model says so in any batch."""
    return margin(logits, labels) > least_margin(logits)


def least_margin(logits: Tensor) -> Tensor:
    """(B,), the difference of two logits (B,Y) below which it may be rounding."""
    return _ROUNDING * logits.abs().amax(1)


def rivals_of(logits: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
    """(B,K) long: the wrong classes in falling order of their logits, ``most`` of them, or all (K = Y - 1)."""
    masked = logits.scatter(1, labels[:, None], -torch.inf)
    return masked.argsort(dim=1, descending=True, stable=True)[:, : logits.shape[1] - 1][:, :most]


def nearest_plane(logits: Tensor, slopes: Slopes, labels: Tensor, rivals: Tensor, norm: str) -> Plane:
    """Of each sample the plane that is nearest in ``norm``, the box left out of account.

    It lies where the rival is above the label by a little more than what `misled` asks for; at a tie, a search whose
    steps overshoot by a share of what is left would come nearer and nearer and never be through.

    Args:
        logits: (B,Y).
        slopes: of the same pass, see `LogitOracle.slopes`; asked for one gradient a column of ``rivals``.
        labels: (B,) long.
        rivals: (B,K) long.
    """
    gaps = logits.gather(1, rivals) - logits.gather(1, labels[:, None]) - 2 * least_margin(logits)[:, None]
    least, best = gaps.new_full((len(gaps),), torch.inf, dtype=torch.float64), None
    for gap, slope in zip(gaps.unbind(1), slopes(rivals, labels), strict=True):
        size = dual_norm(slope, norm)
        away = torch.where(size > 0, gap.abs() / size, torch.inf)
        nearer = away < least
        least = torch.where(nearer, away, least)
        best = Plane(gap, slope) if best is None else best.replaced(nearer, gap, slope)
    if best is None:
        raise ValueError("a classifier of one class has no boundary")
    return best


def dual_norm(slope: Tensor, norm: str) -> Tensor:
    """(B,) float64, for how much a move of length 1 in ``norm`` changes the gap at most."""
    order = 1 if norm == "linf" else 2
    size: Tensor = torch.linalg.vector_norm(slope.flatten(1), order, dim=1, dtype=torch.float64)
    return size


def _length(weight: Tensor, pace: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """(B,1): the least ``t`` with ``sum(weight * min(t * pace, room)) = wanted``; the largest number where none is.

    All arguments are (B,D) but ``wanted`` (B,1), and none is negative. The sum is concave and piecewise linear in
    ``t``, so Newton's method climbs to the root from below and ends there exactly, after a few passes over the pixels;
    sorting them by where they meet the box finds the same root.
    """
    length, most = torch.zeros_like(wanted), torch.finfo(wanted.dtype).max
    rise, full = weight * pace, weight * room
    while True:
        free = length * pace < room
        reached = torch.where(free, 0.0, full).sum(1, keepdim=True)
        speed = torch.where(free, rise, 0.0).sum(1, keepdim=True)
        longer = torch.where(speed > 0, (wanted - reached) / speed, most).clamp(max=most)
        longer = torch.where(wanted > reached, torch.maximum(longer, length), length)
        if torch.equal(longer, length):
            return length
        length = longer
