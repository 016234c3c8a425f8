"""FMN, fast minimum-norm attacks (Pintor et al. 2021), L2 and L-inf.

Shapes: N samples, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import L2, Ball
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import dual_norm
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.numbers import Number, at_least, parse_number

_ALPHA = {"l2": 1.0, "linf": 10.0}  # of the paper's experiments (section 3), as is all that follows
_SHRINK = 0.01  # last step size over the first
_GAMMA_END = 1e-4


@dataclass(frozen=True, kw_only=True)
class FMN(RefinedMinimumNorm):
    """Gradient steps in a ball around each sample whose radius shrinks on a success and grows otherwise.

    Args:
        steps: gradient evaluations.
        alpha: first step size in the L2 norm, in units of [0,1] pixels; it falls by a cosine to a hundredth. None: 1
            for L2 and 10 for L-inf.
        gamma: first relative change of the radius in a step; it falls by a cosine to 0.0001.
        refine, norm, eps, seed: see `RefinedMinimumNorm`.

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

    def approach_passes(self, problem: Problem) -> Passes:
        return (update(problem) + Passes(backward=1)) * self.steps + update(problem)

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        images, labels = best.clean, best.labels
        ball, alpha = threat.ball, _ALPHA[threat.norm] if self.alpha is None else float(self.alpha)
        x_adv, rows, l2 = images, torch.arange(len(images), device=images.device), L2(0.0)
        radius = torch.full_like(best.norm, torch.inf)
        for step in range(self.steps):  # a forward and a backward pass, through all samples: none leaves early
            logits, margins, gradient = oracle.gradient(x_adv, rows, lambda logits, _: margin(logits, labels))
            fooled = best.update(x_adv, rows, logits)
            # |margin| over the dual norm of its gradient: distance to the linearised boundary, infinite without one.
            ahead = margins.abs() / dual_norm(gradient, threat.norm)
            boundary = ball.distance(x_adv, images) + ahead.nan_to_num(nan=torch.inf, posinf=torch.inf)
            radius = self._next_radius(radius, best.norm, fooled, boundary, self._cosine(step, self.gamma, _GAMMA_END))
            x_next = x_adv + self._cosine(step, alpha, _SHRINK * alpha) * l2.step(gradient, 1.0)
            x_adv = _clipped(x_next - images, radius, ball).add_(images).clamp_(0, 1)
        best.update(x_adv, rows, oracle.logits(x_adv, rows))

    def _next_radius(self, radius: Tensor, best_norm: Tensor, fooled: Tensor, boundary: Tensor, gamma: float) -> Tensor:
        """Radii (N,) of the next balls: smaller by ``gamma`` after a success, else larger.

        Before the first success a radius reaches at least to the linearised boundary, ``boundary`` (N,). With that
        alone, as in the paper, box and curvature can keep a sample just short of the boundary for ever, so it grows as
        well.
        """
        larger = torch.where(radius < torch.inf, radius * (1 + gamma), 0.0)
        outside = torch.where(best_norm < torch.inf, larger, torch.maximum(larger, boundary))
        return torch.where(fooled, torch.minimum(radius * (1 - gamma), best_norm), outside)

    def _cosine(self, step: int, first: float, last: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * step / self.steps)) / 2


def _clipped(delta: Tensor, radius: Tensor, ball: Ball) -> Tensor:
    """Perturbations (N,C,H,W), scaled (L2) or clipped (L-inf) to ``radius`` (N,) in the norm of ``ball``."""
    if ball.norm == "linf":
        bound = radius.to(delta).view(-1, 1, 1, 1)
        return torch.clamp(delta, -bound, bound)
    scale = (radius / ball.distance(delta, torch.zeros_like(delta))).clamp(max=1.0).nan_to_num(nan=1.0)
    return delta * scale.to(delta).view(-1, 1, 1, 1)
