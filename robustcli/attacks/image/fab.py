"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples").

Shapes: N samples, B of them, C channels, H height, W width, K rival classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import LogitOracle, copies_per_pass
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import biased_step, nearest_hyperplane, rival_classes
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

_START_RADIUS = {"linf": 0.3, "l2": 1.0}  # of a random start, where neither eps nor a success bounds it


@dataclass(frozen=True, kw_only=True)
class FAB(MinimumNormAttack):
    """Steps onto the nearest linearised decision boundary, biased towards the clean image.

    Args:
        steps: of each start (and target).
        restarts: the first starts at the clean image, the others at random, half as far as eps or the best norm so far.
        targets: 0: every step linearises all classes, a backward pass for each; else it linearises one, and there is a
            search towards each of that many wrong classes of highest clean logit.
        alpha_max: largest weight of the projection of the clean image, in [0,1].
        eta: overshoot of a step beyond the boundary, 1 or more.
        beta: backward step: share of the perturbation that a success keeps, in (0,1).
        norm, seed: see `MinimumNormAttack`.
        eps: as there; a sample that is fooled within it leaves the search. It also bounds the random starts.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        at_least("restarts", self.restarts, 1)
        at_least("targets", self.targets, 0)
        alpha_max, eta, beta = (parse_number(key, getattr(self, key)) for key in ("alpha_max", "eta", "beta"))
        if alpha_max > 1:
            raise UserError(f"attack.alpha_max is {alpha_max}: it is a weight, give at most 1, such as 0.1.")
        if eta < 1:
            raise UserError(f"attack.eta is {eta}: steps would end before the boundary, give 1 or more.")
        if not 0 < beta < 1:
            raise UserError(f"attack.beta is {beta}: give a share between 0 and 1, such as 0.9.")
        self._store(alpha_max=alpha_max, eta=eta, beta=beta)

    def passes(self, problem: Problem) -> Passes:
        rivals = problem.classes - 1
        starts = self.restarts * (min(self.targets, rivals) if self.targets else 1)
        step = update(problem) + Passes(forward=1, backward=1 if self.targets else rivals)
        return (update(problem) + step * (starts * self.steps)).bounded()

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        ball, radius = threat.ball, _START_RADIUS[threat.norm] if threat.eps is None else threat.ball.eps
        best = NearestAdversarials(images, labels, ball, oracle, enough=threat.radius)
        rows = torch.arange(len(images), device=images.device)
        logits = oracle.logits(images, rows)
        best.update(images, rows, logits)
        rivals = rival_classes(logits, labels, self.targets or None)
        for restart in range(self.restarts):
            rows = rows[best.unfinished(rows)]
            start = best.first_iterates(rows, sample_ids, radius, self.seed, "fab", restart)
            self._restart(oracle, best, rows, start, rivals, threat)
        return best.images

    def _restart(
        self,
        oracle: LogitOracle,
        best: NearestAdversarials,
        rows: Tensor,
        start: Tensor,
        rivals: Tensor,
        threat: ThreatModel,
    ) -> None:
        """One restart: all targets from the same start, as many at a time as fill a pass; else one search."""
        target_groups = [column[:, None] for column in rivals.unbind(1)] if self.targets else [rivals]
        while len(rows) and target_groups:
            count = min(copies_per_pass(start), len(target_groups))
            wide, counter = rows.repeat(count), QueryCounter.of(count * len(rows))
            wide_oracle = LogitOracle(oracle.model, counter, randomised=oracle.randomised)
            wide_best = NearestAdversarials(
                best.clean[wide], best.labels[wide], threat.ball, wide_oracle, enough=threat.radius
            )
            classes = torch.cat([column[rows] for column in target_groups[:count]])
            x_start = start.repeat(count, 1, 1, 1)
            self._steps(wide_oracle, wide_best, torch.arange(len(wide)).to(rows), x_start, classes, threat.ball)
            # Several targets share a pass, but count as one after the other: the next only where those before failed.
            for positions in torch.arange(len(wide), device=rows.device).view(count, -1):
                unfinished = best.unfinished(rows)
                best.merge(wide_best, positions[unfinished], rows[unfinished])
                oracle.counter.add(counter.part(positions[unfinished]), rows[unfinished])
            unfinished, target_groups = best.unfinished(rows), target_groups[count:]
            rows, start = rows[unfinished], start[unfinished]

    def _steps(
        self, oracle: LogitOracle, best: NearestAdversarials, rows: Tensor, x_adv: Tensor, rivals: Tensor, ball: Ball
    ) -> None:
        for _ in range(self.steps):  # two forward passes, and a backward pass a rival class
            if not len(rows):
                return
            clean, labels, classes = best.clean[rows], best.labels[rows], rivals[rows]
            logits, logit_gradients = oracle.logit_gradients(x_adv, rows)
            least = best.least_margin(logits, rows)
            hyperplane = nearest_hyperplane(logits, logit_gradients, labels, classes, ball.norm, least)
            x_adv = biased_step(x_adv, clean, hyperplane, ball, alpha_max=self.alpha_max, eta=self.eta)
            fooled = best.update(x_adv, rows, oracle.logits(x_adv, rows))
            # The backward step: a success is drawn to the clean image, so that the next step looks for a nearer one.
            x_adv = torch.where(_per_image(fooled), clean + self.beta * (x_adv - clean), x_adv)
            unfinished = best.unfinished(rows)
            rows, x_adv = rows[unfinished], x_adv[unfinished]


def _per_image(values: Tensor) -> Tensor:
    """(B,) -> (B,1,1,1)."""
    return values.view(-1, 1, 1, 1)
