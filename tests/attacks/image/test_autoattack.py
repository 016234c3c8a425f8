"""AutoAttack: the worst case of its members, each only on what still stands.

Shapes: N images, C channels, H height, W width.
"""

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import EOT, PGD, AutoAttack, LogitOracle
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.counter import QueryCounter
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import SmallNet


def _inputs(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = SmallNet().eval(), torch.rand(n, 3, 8, 8, generator=generator(40))
    return net, images, net(images).argmax(1)


def test_the_members_are_those_of_the_paper_in_its_order() -> None:
    standard = AutoAttack(norm="l2", eps=0.5, seed=3).members()
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [getattr(member, "targets", 0) for member in standard.values()] == [0, 9, 9, 0]
    assert {member.seed for member in standard.values()} == {3}
    assert [getattr(member, "steps", None) for member in standard.values()] == [100, 100, 100, None]
    assert standard["square"].queries == 5000  # type: ignore[attr-defined]
    rand = AutoAttack(version="rand").members()
    assert [(each.draws, each.attack.loss) for each in rand.values()] == [(20, "cross_entropy"), (20, "dlr")]  # type: ignore[attr-defined]
    assert list(AutoAttack(version="plus").members())[:3] == ["apgd-ce-5", "apgd-dlr-5", "fab-5"]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.012), ("l2", 0.1)])
def test_it_is_the_worst_case_of_its_members_and_spends_only_on_what_stands(norm: str, eps: float) -> None:
    net, images, labels = _inputs(30)
    ensemble = AutoAttack(norm=norm, eps=eps, steps=6, queries=40)
    found = ensemble(net, images, labels)
    alone = {name: member(net, images, labels, ensemble.threat) for name, member in ensemble.members().items()}
    fooled = torch.stack([result.success & (result.norm <= eps) for result in alone.values()]).any(0)
    assert fooled.any()
    assert not fooled.all()
    assert torch.equal(found.success, fooled)
    early = alone["apgd-ce"].success
    assert (found.gradients[early] == alone["apgd-ce"].gradients[early]).all()
    total = sum((result.queries for result in alone.values()), torch.zeros(30, dtype=torch.long))
    assert (found.queries[~fooled] == total[~fooled] + 4).all()  # one more to judge each member


def test_each_image_names_the_first_member_that_fools() -> None:
    net, images, labels = _inputs(30)
    ensemble = AutoAttack(norm="l2", eps=0.2, steps=1, queries=200)
    found = ensemble(net, images, labels)
    alone = {name: member(net, images, labels, ensemble.threat).images for name, member in ensemble.members().items()}
    # That of FAB is put into the ball, and may fool there too.
    alone = {name: net(ensemble.threat.project(x, images)).argmax(1) != labels for name, x in alone.items()}
    first = [next((name for name in alone if alone[name][i]), None) for i in range(30)]
    fooled = [i for i in range(30) if found.success[i]]
    assert [found.members[i] for i in fooled] == [first[i] for i in fooled]
    assert len({first[i] for i in fooled}) > 2, "one member breaks all: nothing is told apart"
    assert not any(PGD(eps=0.012)(net, images, labels).members)


def test_through_eot_too() -> None:
    net, images, labels = _inputs(6)
    assert set(EOT(AutoAttack(eps=0.2, steps=3), draws=2)(net, images, labels).members) == {"apgd-ce"}


class Noisy(nn.Module):
    """`SmallNet` whose logits are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + 0.5 * torch.randn(logits.shape)


def test_a_model_that_draws_is_attacked_by_all_members_and_judged_on_the_mean() -> None:
    _, images, labels = _inputs(4)
    attack = AutoAttack(version="rand", eps=0.2, steps=4)
    found = attack(Noisy().eval(), images, labels)
    assert found.success.all()
    assert (found.gradients == 2 * 20 * 4).all()
    assert torch.equal(found.images, attack(Noisy().eval(), images, labels).images)


def test_hyper_parameters_are_checked() -> None:
    bad: list[dict[str, object]] = [{"version": "fast"}, {"steps": -1}, {"queries": 0}, {"norm": "l1"}]
    for changed in bad:
        with pytest.raises(UserError, match=rf"(attack|threat)\.{next(iter(changed))} is"):
            AutoAttack(**changed)  # type: ignore[arg-type]


def test_what_no_member_fools_keeps_the_image_of_the_highest_margin() -> None:
    net, images, labels = _inputs(12)
    ensemble = AutoAttack(eps=0.004, steps=6, queries=40)
    result, ball = ensemble(net, images, labels), ensemble.threat.ball
    members = (member(net, images, labels, ensemble.threat).images for member in ensemble.members().values())
    margins = torch.stack([margin(net(ball.settle(x_adv, images)), labels) for x_adv in members])[:, ~result.success]
    kept = margin(net(result.images), labels)[~result.success]
    assert torch.allclose(kept, margins.amax(0), atol=1e-5)
    assert (kept > margins[-1] + 1e-3).any(), "the last member is not the best of all samples"
    names, standing = list(ensemble.members()), torch.nonzero(~result.success).flatten().tolist()
    assert [result.members[i] for i in standing] == [names[k] for k in margins.argmax(0).tolist()]


def test_the_margin_of_a_model_that_draws_is_the_mean_of_twenty() -> None:
    drawn = iter(torch.linspace(-1.0, 3.0, 20).tolist())
    model = lambda x: torch.stack([torch.zeros(len(x)), torch.full((len(x),), next(drawn))], dim=1)  # noqa: E731
    oracle, rows = LogitOracle(model, QueryCounter.of(2), randomised=True), torch.arange(2)
    margins = AutoAttack._margin(oracle, torch.zeros(2, 1, 1, 1), rows, torch.zeros(2, dtype=torch.long))
    assert margins.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert oracle.counter.queries.tolist() == [20, 20]
