"""Auto-PGD against the paper's schedule, against another implementation, and towards targets.

Shapes: N images, C channels, H height, W width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import APGD, SepAttack
from robustcli.attacks.core.class_losses import class_objective
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.image.apgd import checkpoints
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import SmallNet, ToyDual, make_pairs


def _inputs(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = SmallNet().eval(), torch.rand(n, 3, 8, 8, generator=generator(5))
    return net, images, net(images).argmax(1)


def test_the_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 29, 35, 40, 44, 47, 50]


def _theirs(norm: str, eps: float, loss: str, images: Tensor, labels: Tensor, net: nn.Module) -> tuple[Tensor, ...]:
    """The best image and the samples that are fooled, by torchattacks, and the start that it drew."""
    torchattacks = pytest.importorskip("torchattacks")
    name = {"linf": "Linf", "l2": "L2"}[norm]
    other = torchattacks.APGD(net, norm=name, eps=eps, steps=100, loss={"cross_entropy": "ce"}.get(loss, loss))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        best, standing, _, _ = other.attack_single_run(images, labels)
        torch.manual_seed(3)
        way = 2 * torch.rand(images.shape) - 1 if norm == "linf" else torch.randn(images.shape)
    length = way.flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1).view(-1, 1, 1, 1)
    return best, ~standing, (images + eps * way / length).clamp(0, 1)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255])
def test_the_same_as_torchattacks_from_the_same_start(eps: float, loss: str) -> None:
    """Up to one sample: at the first checkpoint torchattacks compares the first loss with 0, not with that
    of the start.
    """
    net, images, labels = _inputs(40)
    theirs, fooled, start = _theirs("linf", eps, loss, images, labels, net)
    attack, ids = APGD(eps=eps, loss=loss), torch.arange(40)
    silent, telling = (
        class_objective(loss, net, labels, report_fooled=report_fooled) for report_fooled in (False, True)
    )
    apart = (attack.maximise(silent, images, ids, start=start) - theirs).abs().flatten(1).amax(1) > 1e-6
    assert apart.sum() <= 1
    stopped = net(attack.maximise(telling, images, ids, start=start)).argmax(1) != labels
    assert torch.equal(stopped, fooled)


def test_the_same_as_torchattacks_in_l2_in_double_precision() -> None:
    """In single precision sums of squares differ in the last bit, and whether a loss rose with them."""
    net, images, labels = _inputs(20)
    net, images = net.double(), images.double()
    torch.set_default_dtype(torch.float64)
    try:
        theirs, _, start = _theirs("l2", 0.5, "cross_entropy", images, labels, net)
    finally:
        torch.set_default_dtype(torch.float32)
    oracle = ImageOracle(class_objective("cross_entropy", net, labels, report_fooled=False), QueryCounter.of(20))
    attack = APGD(norm="l2", eps=0.5)
    ours = attack.ascend(oracle, images, list(range(20)), attack.threat, start)
    assert (ours - theirs).abs().max() < 1e-6


def test_a_stuck_sample_halves_its_step_and_goes_back_to_its_best_while_another_goes_on() -> None:
    """Row 0 stands at its summit and can only overshoot; row 1 climbs a slope without end."""
    images = torch.full((2, 1, 1, 1), 0.5)
    asked: list[Tensor] = []

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        asked.append(x.detach().flatten())
        place = x.flatten()
        return torch.where(rows == 0, -(place - 0.53).abs(), place)

    found = APGD(eps=0.1, steps=100).maximise(objective, images, torch.arange(2), start=images)
    assert found.flatten().tolist() == pytest.approx([0.53, 0.6], abs=1e-3)
    steps = torch.stack(asked).diff(dim=0).abs()
    assert steps[:22, 0].max() > 0.09
    assert steps[90:, 0].max() < 0.02


@pytest.mark.parametrize("changed", [{}, {"restarts": 3}, {"norm": "l2", "eps": 0.3}, {"loss": "dlr"}])
def test_a_fooled_sample_leaves_and_nothing_changes_for_the_others(changed: dict[str, Any]) -> None:
    net, images, labels = _inputs(30)
    attack = APGD(**{"eps": "3/255", "steps": 12, **changed})
    left, stayed = attack(net, images, labels), attack.replace(early_stop=False)(net, images, labels)
    assert left.success.any()
    assert not left.success.all()
    assert (left.success >= stayed.success).all()
    assert (left.images - stayed.images)[~left.success].abs().max() < 1e-6
    assert (stayed.gradients == 12 * attack.restarts).all()
    assert (stayed.queries == 13 * attack.restarts).all()
    assert torch.equal(left.gradients[~left.success], stayed.gradients[~left.success])
    assert (left.gradients[left.success] < 12).any()


def test_each_target_is_tried_and_only_by_those_that_stand() -> None:
    net, images, labels = _inputs(40)
    attack = APGD(eps="2/255", steps=5, targets=9)
    found = attack(net, images, labels)
    assert (found.gradients[~found.success] == 3 * 5).all()  # three wrong classes, though nine are asked for
    assert (found.gradients[found.success] < 15).any()
    one = attack.replace(targets=1)(net, images, labels)
    assert (found.success >= one.success).all()


def test_a_gallery_is_attacked_and_everyone_takes_all_steps(model: ToyDual) -> None:
    found = SepAttack(image=APGD(eps="8/255", steps=10, restarts=2))(model, make_pairs(model))
    assert (found.gradients == 20).all()
    assert found.image_success.any()


def test_hyper_parameters_are_checked() -> None:
    bad: list[dict[str, Any]] = [{"steps": -1}, {"rho": 0}, {"rho": 1}, {"targets": -1}, {"loss": "infonce"}]
    for changed in bad:
        with pytest.raises(UserError, match=rf"attack\.{next(iter(changed))}(=| is)"):
            APGD(**changed)


class OneWay(nn.Module):
    """Classes of which 1, the nearest to the label 0 when clean, never moves; only the last can come out ahead.

    Args:
        classes: 3 or more.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        fixed = [torch.full_like(brightness, level) for level in (1.0, 0.9, *[0.0] * (self.classes - 3))]
        return torch.stack([*fixed, 10 * brightness - 4.5], dim=1)


@pytest.mark.parametrize("classes", [3, 4, 6])
def test_every_target_is_a_class_of_its_own(classes: int) -> None:
    net, images, labels = OneWay(classes), torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.long)
    attack = APGD(eps=0.1, steps=10, targets=2)
    assert attack(net, images, labels).success.all()
    assert not attack.replace(targets=1)(net, images, labels).success.any()
