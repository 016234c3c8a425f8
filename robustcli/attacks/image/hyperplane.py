"""Linearised decision boundary of a classifier: its hyperplanes, and the projection onto them inside [0,1].

Shapes: B batch, C channels, H height, W width, D = C*H*W pixels, K rival classes, Y classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.oracle import LogitGradients


@dataclass(frozen=True)
class Hyperplane:
    """Hyperplane ``gap + gradient . delta = 0``: the logits of a rival and of the label are equal, to first order.

    Args:
        gap: (B,) logit of the rival less that of the label; below 0 on the label's side.
        gradient: (B,C,H,W), of the gap; zeros where the model gave none.
    """

    gap: Tensor
    gradient: Tensor

    def taken_at(self, images: Tensor, origin: Tensor) -> "Hyperplane":
        """The same hyperplane, with its gap taken at ``images`` in place of ``origin``."""
        return Hyperplane(self.gap + (self.gradient * (images - origin)).flatten(1).sum(1), self.gradient)

    def where(self, chosen: Tensor, gap: Tensor, gradient: Tensor) -> "Hyperplane":
        """Another hyperplane for the samples that are ``chosen`` (B,)."""
        return Hyperplane(
            torch.where(chosen, gap, self.gap), torch.where(chosen.view(-1, 1, 1, 1), gradient, self.gradient)
        )

    def projection_step(self, images: Tensor, norm: str) -> Tensor:
        """(B,C,H,W): the smallest delta from ``images`` onto the hyperplane within [0,1]; to the nearest corner where
        the box ends before the hyperplane (FAB, Croce and Hein 2020, equations 7 and 8).
        """
        gradient, x = self.gradient.flatten(1), images.flatten(1)
        scale = gradient.abs().amax(1, keepdim=True)
        weight = torch.where(scale > 0, gradient.abs() / scale, 0.0)
        direction = -gradient.sign() * self.gap.sign()[:, None]
        room = torch.where(direction > 0, 1 - x, x)
        rate = weight if norm == "l2" else (weight > 0).to(weight)
        target = torch.where(scale > 0, self.gap.abs()[:, None] / scale, 0.0)
        length = _step_length(weight, rate, room, target)
        return (direction * torch.minimum(length * rate, room)).view_as(images)


def rival_classes(logits: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
    """(B,K) long: the wrong classes in falling order of their logits, ``most`` of them, or all (K = Y - 1)."""
    masked = logits.scatter(1, labels[:, None], -torch.inf)
    return masked.argsort(dim=1, descending=True, stable=True)[:, : logits.shape[1] - 1][:, :most]


def nearest_hyperplane(
    logits: Tensor, logit_gradients: LogitGradients, labels: Tensor, rivals: Tensor, norm: str, least_margin: Tensor
) -> Hyperplane:
    """Nearest hyperplane of each sample in ``norm``, the box left out of account; a backward pass a rival.

    It lies where the rival is above the label by twice ``least_margin``. At a tie, a search whose steps overshoot by a
    share of the remaining distance would come nearer and nearer and never cross it.

    Args:
        logits: (B,Y).
        logit_gradients: of the same pass, see `LogitOracle.logit_gradients`.
        labels: (B,) long.
        rivals: (B,K) long.
        least_margin: (B,), see `NearestAdversarials.least_margin`.
    """
    gaps = logits.gather(1, rivals) - logits.gather(1, labels[:, None]) - 2 * least_margin[:, None]
    least_distance, best = gaps.new_full((len(gaps),), torch.inf, dtype=torch.float64), None
    for gap, gradient in zip(gaps.unbind(1), logit_gradients(rivals, labels), strict=True):
        norm_of_gradient = dual_norm(gradient, norm)
        distance = torch.where(norm_of_gradient > 0, gap.abs() / norm_of_gradient, torch.inf)
        nearer = distance < least_distance
        least_distance = torch.where(nearer, distance, least_distance)
        best = Hyperplane(gap, gradient) if best is None else best.where(nearer, gap, gradient)
    if best is None:
        raise ValueError("a classifier of one class has no boundary")
    return best


def biased_step(
    x_adv: Tensor, clean: Tensor, hyperplane: Hyperplane, ball: Ball, *, alpha_max: float, eta: float
) -> Tensor:
    """The next iterate (B,C,H,W) of FAB (Croce and Hein 2020, equation 9): a convex combination of the projections of
    the iterate and of the clean image onto the hyperplane.

    Args:
        hyperplane: taken at ``x_adv``.
        alpha_max: largest weight of the projection of the clean image, in [0,1].
        eta: overshoot beyond the hyperplane, 1 or more.
    """
    step_adv = hyperplane.projection_step(x_adv, ball.norm)
    step_clean = hyperplane.taken_at(clean, x_adv).projection_step(clean, ball.norm)
    norm_adv, norm_clean = (ball.distance(move, torch.zeros_like(move)) for move in (step_adv, step_clean))
    total = norm_adv + norm_clean
    alpha = torch.where(total > 0, norm_adv / total, 0.0).clamp(max=alpha_max).to(x_adv).view(-1, 1, 1, 1)
    from_adv, from_clean = x_adv + eta * step_adv, clean + eta * step_clean
    return (from_adv + alpha * (from_clean - from_adv)).clamp(0, 1)


def dual_norm(gradient: Tensor, norm: str) -> Tensor:
    """(B,) float64 dual norm of a gradient: the most by which a delta of length 1 in ``norm`` changes the gap."""
    order = 1 if norm == "linf" else 2
    size: Tensor = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1, dtype=torch.float64)
    return size


def _step_length(weight: Tensor, rate: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """(B,1): the least ``t`` with ``sum(weight * min(t * rate, room)) = target``; the largest number where none is.

    All arguments are (B,D) but ``target`` (B,1), and none is negative. The sum is concave and piecewise linear in
    ``t``, so Newton's method climbs to the root from below and ends there exactly, after a few passes over the pixels;
    sorting them by where they meet the box finds the same root.
    """
    length, largest = torch.zeros_like(target), torch.finfo(target.dtype).max
    growth, full = weight * rate, weight * room
    while True:
        free = length * rate < room
        reached = torch.where(free, 0.0, full).sum(1, keepdim=True)
        slope = torch.where(free, growth, 0.0).sum(1, keepdim=True)
        longer = torch.where(slope > 0, (target - reached) / slope, largest).clamp(max=largest)
        longer = torch.where(target > reached, torch.maximum(longer, length), length)
        if torch.equal(longer, length):
            return length
        length = longer
