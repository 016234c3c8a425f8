"""DDN, the decoupled direction and norm attack (Rony et al. 2019), L2.

Shapes: N samples, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import L2
from robustcli.attacks.core.class_losses import LogitScale, cross_entropy
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least, parse_number

_SHRINK = 0.01  # last step size over the first


@dataclass(frozen=True, kw_only=True)
class DDN(RefinedMinimumNorm):
    """Gradient steps on cross-entropy, each projected onto a sphere around the clean image whose radius shrinks after a
    success and grows otherwise (algorithm 1).

    Pixels are not rounded to 256 levels, as they are in the paper.

    Args:
        steps: forward and backward passes.
        alpha: first step size in the L2 norm, in units of [0,1] pixels; it falls by a cosine to a hundredth.
        gamma: relative change of the radius in a step.
        radius: of the first sphere.
        norm: ``l2``.
        refine, eps, seed: see `RefinedMinimumNorm`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    steps: int = 100
    alpha: Number = 1.0
    gamma: float = 0.05
    radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        self._store(**{key: parse_number(key, getattr(self, key)) for key in ("alpha", "gamma", "radius")})
        self.check(self.threat)

    def check(self, threat: ThreatModel) -> None:
        if threat.norm != "l2":
            raise UserError(
                f"threat.norm is {threat.norm!r}, but DDN is for l2: threat=smallest, or threat.norm=l2 with its "
                "threat.eps; attack=fmn is for both norms."
            )

    def approach_passes(self, problem: Problem) -> Passes:
        return (update(problem) + Passes(backward=1)) * self.steps + update(problem)

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        clean, labels, ball, scale = best.clean, best.labels, L2(0.0), LogitScale(best.labels)
        rows, delta = torch.arange(len(clean), device=clean.device), torch.zeros_like(clean)
        radius = clean.new_full((len(clean),), self.radius)
        for step in range(self.steps):  # a forward and a backward pass
            logits, _, gradient = oracle.gradient(
                clean + delta, rows, lambda logits, rows: cross_entropy(scale(logits, rows), labels)
            )
            fooled = best.update(clean + delta, rows, logits)
            # The radius changes from the second iterate on: the first is the clean image.
            if step:
                radius = radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)
            share = _SHRINK + (1 - _SHRINK) * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = delta + ball.step(gradient, share * float(self.alpha))
            length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
            onto_sphere = torch.where(length > 0, radius / length, 0.0).view(-1, 1, 1, 1)
            delta = (clean + onto_sphere * delta).clamp(0, 1) - clean
        x_adv = (clean + delta).clamp(0, 1)
        best.update(x_adv, rows, oracle.logits(x_adv, rows))
