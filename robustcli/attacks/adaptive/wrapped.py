"""What attacks around another attack share.

Shapes: B samples.
"""

from abc import ABC

import torch
from torch import Tensor

from robustcli.attacks.core.classifier import ClassifierAttack
from robustcli.attacks.core.oracle import Meter
from robustcli.attacks.core.pairs import ImageAdversarial


class WrappedAttack(ClassifierAttack, ABC):
    """An attack on classifiers that runs another one, within its budget.

    Args:
        attack: the one inside.
    """

    def __init__(self, attack: ClassifierAttack) -> None:
        self.attack = attack
        self.norm, self.budget, self.seed = attack.norm, attack.budget, attack.seed

    def reported(self, found: ImageAdversarial) -> ImageAdversarial:
        return self.attack.reported(found)


def spread(total: int, samples: int) -> Tensor:
    """(B,) long: a cost of a whole batch, shared out evenly; the sum is exact."""
    shares = torch.full((samples,), total // max(samples, 1), dtype=torch.long)
    shares[: total % max(samples, 1)] += 1
    return shares


def book(meter: Meter, spent: Meter, times: int = 1) -> None:
    """Adds to ``meter`` what was spent on the same rows, ``times`` over."""
    for name, counted in vars(spent).items():
        getattr(meter, name).add_(times * counted)
