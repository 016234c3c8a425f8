"""DeepFool (Moosavi-Dezfooli et al. 2016) inside the box of the images.

Shapes: N samples, B of them, C channels, H height, W width, K rival classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import nearest_hyperplane, rival_classes
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.numbers import at_least, parse_number


@dataclass(frozen=True, kw_only=True)
class DeepFool(RefinedMinimumNorm):
    """Repeated projection onto the nearest linearised decision boundary, until the model is fooled.

    Every step is the smallest within [0,1] (the paper has no box), taken ``1 + overshoot`` times. It costs two forward
    passes and a backward pass a rival class.

    Args:
        classes: how many of the highest logits of the clean image are linearised, its label among them, each at the
            price of a backward pass; None: all.
        overshoot: share by which every step goes beyond the boundary.
        steps: at most.
        refine, norm, eps, seed: see `RefinedMinimumNorm`.

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

    def approach_passes(self, problem: Problem) -> Passes:
        rivals = min(problem.classes, self.classes or problem.classes) - 1
        step = update(problem) + Passes(forward=1, backward=rivals)
        return (update(problem) + step * self.steps).bounded()

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        x_adv, labels = best.clean, best.labels
        rows, rivals = torch.arange(len(x_adv), device=x_adv.device), torch.empty(0)
        for step in range(self.steps):
            logits, logit_gradients = oracle.logit_gradients(x_adv, rows)
            if step == 0:
                rivals = rival_classes(logits, labels, None if self.classes is None else self.classes - 1)
                best.update(x_adv, rows, logits)  # a randomised model may be wrong on the clean image
            least = best.least_margin(logits, rows)
            hyperplane = nearest_hyperplane(logits, logit_gradients, labels[rows], rivals[rows], threat.norm, least)
            x_adv = (x_adv + (1 + self.overshoot) * hyperplane.projection_step(x_adv, threat.norm)).clamp(0, 1)
            # A forward pass of its own: taking fooled samples through another round of backward passes would cost more.
            unfooled = ~best.update(x_adv, rows, oracle.logits(x_adv, rows))
            rows, x_adv = rows[unfooled], x_adv[unfooled]
            if not len(rows):
                break
