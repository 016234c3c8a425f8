"""A search that fills its passes with targets or proposals tried side by side finds what it finds one by one."""

import pytest
import torch
from torch import Tensor

from robustcli.attacks import APGD, FAB, Square
from robustcli.attacks.core import oracle
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.utils.seeding import generator

from ..conftest import SmallNet

ATTACKS = [
    APGD(eps="2/255", steps=8, targets=3, loss="dlr"),
    APGD(eps="2/255", steps=8, targets=3, restarts=2, norm="linf"),
    FAB(eps="2/255", steps=8, targets=3),
    FAB(steps=8, targets=3, restarts=2, norm="l2"),
    Square(eps="3/255", queries=300),
    Square(norm="l2", eps=0.1, queries=300),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_side_by_side_is_one_by_one(attack: ClassifierAttack, monkeypatch: pytest.MonkeyPatch) -> None:
    double, images = SmallNet().eval().double(), torch.rand(20, 3, 8, 8, generator=generator(41))

    def net(x: Tensor) -> Tensor:
        logits: Tensor = double(x.double()).float()  # in single precision the size of a pass shows in the last bits
        return logits

    labels = net(images).argmax(1)
    monkeypatch.setattr(oracle, "_FULL_PASS", {"cpu": (1, 1)})
    alone = attack(net, images, labels)
    monkeypatch.setattr(oracle, "_FULL_PASS", {"cpu": (200 * 192, 200)})
    together = attack(net, images, labels)
    assert alone.success.any()
    assert (together.images - alone.images).abs().max() < 1e-6
    assert torch.equal(together.success, alone.success)
    assert torch.equal(together.queries, alone.queries)
    assert torch.equal(together.gradients, alone.gradients)
