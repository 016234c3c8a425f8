"""DeepFool (Moosavi-Dezfooli et al. 2016) inside the box of the images.

Shapes: N samples, B of them, C channels, H height, W width, K rival classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import nearest_plane, rivals_of
from robustcli.attacks.image.smallest import Smallest
from robustcli.utils.numbers import at_least, parse_number


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNormAttack):
    """Moves on the nearest linearised boundary again and again, until the model is misled.

    Every move is the smallest within [0,1], where the paper knows no box; it is taken ``1 + overshoot`` times.

    Args:
        classes: how many of the highest logits of the clean image are linearised, its label among them, each at the
            price of a backward pass; None: all.
        overshoot: the share by which every move goes beyond the boundary.
        steps: moves at most.
        norm, eps, seed: see `MinimumNormAttack`; nothing is drawn.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    classes: int | None = 10
    overshoot: float = 0.02
    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:
            at_least("classes", self.classes, 2)
        at_least("steps", self.steps, 0)
        self._store(overshoot=parse_number("overshoot", self.overshoot))

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best, found = Smallest(images, labels, threat.ball, oracle), images
        rows, rivals = torch.arange(len(images), device=images.device), torch.empty(0)
        for step in range(self.steps):
            logits, slopes = oracle.slopes(found, rows)
            if step == 0:
                rivals = rivals_of(logits, labels, None if self.classes is None else self.classes - 1)
                best.offer(found, rows, logits)  # a model whose answers are drawn may be wrong to begin with
            plane = nearest_plane(logits, slopes, labels[rows], rivals[rows], threat.norm)
            found = (found + (1 + self.overshoot) * plane.shortest_move(found, threat.norm)).clamp(0, 1)
            # A pass of its own: a backward pass for every class, through those that are done as well, costs more.
            left = ~best.offer(found, rows, oracle.logits(found, rows))
            rows, found = rows[left], found[left]
            if not len(rows):
                break
        return best.images
