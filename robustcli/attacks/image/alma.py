"""ALMA, the augmented Lagrangian attack (Rony et al. 2021, "Augmented Lagrangian adversarial attacks"), L2.

Shapes: N samples, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import L2
from robustcli.attacks.core.class_losses import dlr
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least, parse_number

_MULTIPLIERS = (1e-6, 1e12)  # bounds of mu
_CHECK, _PROGRESS, _GROWTH = (
    10,
    0.95,
    1.2,
)  # rho grows before a success where the constraint has not fallen by 5 % in 10 steps
_SHRINK = 0.01  # last step size over the first
_FLOOR = 1e-3  # of RMSProp's divisor: a direction of length 1 has entries of rounding alone


@dataclass(frozen=True, kw_only=True)
class ALMA(RefinedMinimumNorm):
    """Descent on ``|delta| + P(constraint, rho, mu)``: the constraint is minus the DLR, its multiplier mu and its
    penalty factor rho follow each sample (algorithm 1, with the penalty P2).

    RMSProp blows rounding up: beside other batch mates the norm of a sample may differ in the third digit.

    Args:
        steps: forward and backward passes.
        alpha: first step size of RMSProp; it falls exponentially to a hundredth.
        memory: weight of the past in the moving averages of mu and of RMSProp, in [0,1); the paper takes
            0.5 for 100 steps, 0.9 for 1000.
        norm: ``l2``.
        refine, eps, seed: see `RefinedMinimumNorm`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    steps: int = 200
    alpha: Number = 0.1
    memory: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        self._store(**{key: parse_number(key, getattr(self, key)) for key in ("alpha", "memory")})
        if self.memory >= 1:
            raise UserError(f"attack.memory is {self.memory}: nothing would be learnt, give less than 1, such as 0.5.")
        self.check(self.threat)

    def check(self, threat: ThreatModel) -> None:
        if threat.norm != "l2":
            raise UserError(
                f"threat.norm is {threat.norm!r}, but ALMA is here for l2: threat=smallest, or threat.norm=l2 with its "
                "threat.eps; attack=fmn is for both norms."
            )

    def approach_passes(self, problem: Problem) -> Passes:
        return (update(problem) + Passes(backward=1)) * self.steps + update(problem)

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        clean, labels = best.clean, best.labels
        rows, x_adv = torch.arange(len(clean), device=clean.device), clean
        velocity, square, state, ball = torch.zeros_like(clean), torch.ones_like(clean), _Multipliers(clean), L2(0.0)
        for step in range(self.steps):  # a forward and a backward pass
            logits, losses, gradient = oracle.gradient(x_adv, rows, lambda logits, _: dlr(logits, labels))
            fooled = best.update(x_adv, rows, logits)
            weight = state.update(-losses, fooled, step, self.memory).view(-1, 1, 1, 1)
            # RMSProp with momentum, on descent directions of length 1.
            descent = ball.step(ball.step(x_adv - clean, 1.0) - weight * gradient, 1.0)
            square = self.memory * square + (1 - self.memory) * descent.square()
            velocity = self.memory * velocity + descent / (square.sqrt() + _FLOOR)
            x_adv = (x_adv - float(self.alpha) * _SHRINK ** (step / self.steps) * velocity).clamp(0, 1)
        best.update(x_adv, rows, oracle.logits(x_adv, rows))


class _Multipliers:
    """Multiplier mu (N,) and penalty factor rho (N,) of each sample."""

    def __init__(self, like: Tensor) -> None:
        self._mu, self._rho = like.new_ones(len(like)), like.new_ones(len(like))
        self._last_check = like.new_full((len(like),), torch.inf)
        self._fooled_once = torch.zeros(len(like), dtype=torch.bool, device=like.device)

    def update(self, constraint: Tensor, fooled: Tensor, step: int, memory: float) -> Tensor:
        """Weight (N,) of the gradient of the constraint (N,), which is above 0 where the sample is not fooled."""
        if step == 0:
            self._last_check = constraint
        elif (step + 1) % _CHECK == 0:
            stuck = ~self._fooled_once & (constraint >= _PROGRESS * self._last_check)
            self._rho = torch.where(stuck, _GROWTH * self._rho, self._rho)
            self._last_check = constraint
        self._fooled_once = self._fooled_once | fooled
        if step:
            slope = _penalty_slope(constraint, self._rho, self._mu)
            self._mu = (memory * self._mu + (1 - memory) * slope).clamp(*_MULTIPLIERS)
        return _penalty_slope(constraint, self._rho, self._mu)


def _penalty_slope(constraint: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Derivative of P2 by the constraint y: ``mu + 2 mu rho y + rho^2 y^2 / 2`` above 0, ``mu / (1 - rho y)^2``
    below.
    """
    above, below = constraint.clamp(min=0), constraint.clamp(max=0)
    return torch.where(constraint >= 0, mu + 2 * mu * rho * above + rho**2 * above**2 / 2, mu / (1 - rho * below) ** 2)
