"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples").

Shapes: N samples, B of them, C channels, H height, W width, K rival classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import LogitOracle, folds
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import Plane, nearest_plane, rivals_of
from robustcli.attacks.image.smallest import Smallest
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

_REACH = {"linf": 0.3, "l2": 1.0}  # of a restart where neither eps nor a success bounds it


@dataclass(frozen=True, kw_only=True)
class FAB(MinimumNormAttack):
    """Steps to the nearest linearised boundary, drawn towards the clean image, from which it starts.

    Args:
        steps: of each start (and target).
        restarts: starts; the first is the clean image, the others random, half as far as eps or what is known.
        targets: 0: every step linearises all classes, a backward pass for each; else it linearises one, and the search
            is done for each of the so many wrong classes whose clean logits are highest.
        alpha_max: largest weight of the way back to the clean image, in [0,1].
        eta: by how much a step overshoots the boundary, 1 or more.
        beta: what is left of the change after a success, in (0,1).
        norm, seed: see `MinimumNormAttack`.
        eps: as there; a sample that is misled within it is done and leaves the search. It also bounds the starts.

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

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        ball, reach = threat.ball, _REACH[threat.norm] if threat.eps is None else threat.ball.eps
        best = Smallest(images, labels, ball, oracle, enough=threat.radius)
        rows = torch.arange(len(images), device=images.device)
        logits = oracle.logits(images, rows)
        best.offer(images, rows, logits)
        rivals = rivals_of(logits, labels, self.targets or None)
        for restart in range(self.restarts):
            rows = rows[best.open(rows)]
            start = best.start(rows, sample_ids, reach, self.seed, "fab", restart)
            self._restart(oracle, best, rows, start, rivals, threat)
        return best.images

    def _restart(
        self,
        oracle: LogitOracle,
        best: Smallest,
        rows: Tensor,
        start: Tensor,
        rivals: Tensor,
        threat: ThreatModel,
    ) -> None:
        """All targets from the same start, as many at a time as fill a pass; without targets all classes at once."""
        passes = [column[:, None] for column in rivals.unbind(1)] if self.targets else [rivals]
        while len(rows) and passes:
            many = min(folds(start), len(passes))
            wide, counter = rows.repeat(many), QueryCounter.of(many * len(rows))
            asked = LogitOracle(oracle.model, counter, randomised=oracle.randomised)
            tried = Smallest(best.clean[wide], best.labels[wide], threat.ball, asked, enough=threat.radius)
            classes = torch.cat([columns[rows] for columns in passes[:many]])
            found = start.repeat(many, 1, 1, 1)
            self._steps(asked, tried, torch.arange(len(wide)).to(rows), found, classes, threat.ball)
            # One target after the other, as if none had been tried before the last had failed.
            for places in torch.arange(len(wide), device=rows.device).view(many, -1):
                going = best.open(rows)
                best.join(tried, places[going], rows[going])
                oracle.counter.add(counter.part(places[going]), rows[going])
            going, passes = best.open(rows), passes[many:]
            rows, start = rows[going], start[going]

    def _steps(
        self, oracle: LogitOracle, best: Smallest, rows: Tensor, found: Tensor, rivals: Tensor, ball: Ball
    ) -> None:
        for _ in range(self.steps):
            if not len(rows):
                return
            clean, labels, classes = best.clean[rows], best.labels[rows], rivals[rows]
            logits, slopes = oracle.slopes(found, rows)
            found = self._step(found, clean, nearest_plane(logits, slopes, labels, classes, ball.norm), ball)
            fooled = best.offer(found, rows, oracle.logits(found, rows))
            found = torch.where(_each(fooled), clean + self.beta * (found - clean), found)
            going = best.open(rows)
            rows, found = rows[going], found[going]

    def _step(self, found: Tensor, clean: Tensor, plane: Plane, ball: Ball) -> Tensor:
        """The biased step (equation 9): between the moves to the plane from here and from the clean image."""
        here = plane.shortest_move(found, ball.norm)
        back = plane.seen_from(clean, found).shortest_move(clean, ball.norm)
        near, far = (ball.distance(move, torch.zeros_like(move)) for move in (here, back))
        weight = torch.where(near + far > 0, near / (near + far), 0.0).clamp(max=self.alpha_max)
        ahead, direct = found + self.eta * here, clean + self.eta * back
        return (ahead + _each(weight).to(found) * (direct - ahead)).clamp(0, 1)


def _each(values: Tensor) -> Tensor:
    """(B,) -> (B,1,1,1)."""
    return values.view(-1, 1, 1, 1)
