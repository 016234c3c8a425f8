"""FMN, fast minimum-norm attacks (Pintor et al. 2021), L2 and L-inf.

Shapes: N samples, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import L2, Ball
from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import dual_norm
from robustcli.attacks.image.smallest import Smallest
from robustcli.utils.numbers import Number, at_least, parse_number

_ALPHA = {"l2": 1.0, "linf": 10.0}  # of the paper's experiments (section 3), as is all that follows
_SHRINK = 0.01  # last step size over the first
_GAMMA_END = 1e-4


@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNormAttack):
    """Gradient steps in a ball of each sample's own radius, which shrinks on a success and else grows.

    Args:
        steps: gradient evaluations.
        alpha: first step size in the L2 norm, in units of [0,1] pixels; it falls by a cosine to a hundredth. None: 1
            for L2 and 10 for L-inf.
        gamma: first share by which the radius changes; it falls by a cosine to 0.0001.
        norm, eps, seed: see `MinimumNormAttack`; nothing is drawn.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    steps: int = 100
    alpha: Number | None = None
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        self._store(
            alpha=None if self.alpha is None else parse_number("alpha", self.alpha),
            gamma=parse_number("gamma", self.gamma),
        )

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        ball, alpha = threat.ball, _ALPHA[threat.norm] if self.alpha is None else float(self.alpha)
        best, found = Smallest(images, labels, ball, oracle), images
        rows, way = torch.arange(len(images), device=images.device), L2(0.0)
        radius = torch.full_like(best.norm, torch.inf)
        for step in range(self.steps):
            logits, value, uphill = oracle.gradient(found, rows, lambda logits, _: margin(logits, labels))
            fooled = best.offer(found, rows, logits)
            ahead_by = (value.abs() / dual_norm(uphill, threat.norm)).nan_to_num(nan=torch.inf, posinf=torch.inf)
            boundary = ball.distance(found, images) + ahead_by
            radius = self._next(radius, best.norm, fooled, boundary, self._cosine(step, self.gamma, _GAMMA_END))
            ahead = found + self._cosine(step, alpha, _SHRINK * alpha) * way.step(uphill, 1.0)
            found = _shortened(ahead - images, radius, ball).add_(images).clamp_(0, 1)
        best.offer(found, rows, oracle.logits(found, rows))
        return best.images

    def _next(self, radius: Tensor, known: Tensor, fooled: Tensor, boundary: Tensor, gamma: float) -> Tensor:
        """Radii (N,): by ``gamma`` down on a success and up else, and until there is one at least to the linearised
        boundary. (To that alone, as in the paper, box and curvature can keep a sample just short of it for ever.)
        """
        larger = torch.where(radius < torch.inf, radius * (1 + gamma), 0.0)
        outside = torch.where(known < torch.inf, larger, torch.maximum(larger, boundary))
        return torch.where(fooled, torch.minimum(radius * (1 - gamma), known), outside)

    def _cosine(self, step: int, first: float, last: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * step / self.steps)) / 2


def _shortened(move: Tensor, radius: Tensor, ball: Ball) -> Tensor:
    """The move (N,C,H,W), no longer than ``radius`` (N,) in the norm of ``ball``."""
    if ball.norm == "linf":
        bound = radius.to(move).view(-1, 1, 1, 1)
        return torch.clamp(move, -bound, bound)
    share = (radius / ball.distance(move, torch.zeros_like(move))).clamp(max=1.0).nan_to_num(nan=1.0)
    return move * share.to(move).view(-1, 1, 1, 1)
