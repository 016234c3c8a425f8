"""PGD against closed forms, against another implementation, and against broken copies of itself.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.attacks import L2, PGD, ImageAttack, Linf, ThreatModel, frozen
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import LinearClassifier, SmallNet


def _linear(shape: Sequence[int] = (3, 4, 4)) -> tuple[LinearClassifier, Tensor]:
    weight = torch.randn(*shape, generator=generator(3, "w"))
    return LinearClassifier(weight, 0.0), weight


def _reached(attack: ImageAttack, weight: Tensor, n: int = 5) -> Tensor:
    """Share of the closed-form rise of w.x that the attack reaches, from images far from the box's faces."""
    images = 0.4 + 0.2 * torch.rand(n, *weight.shape, generator=generator(4))
    found = attack.maximise(lambda x, rows: x.flatten(1) @ weight.flatten(), images, torch.arange(n))
    best = attack.eps * (weight.abs().sum() if attack.norm == "linf" else weight.norm())
    return ((found - images).flatten(1) @ weight.flatten()) / best


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.3), ("l2", 0.05), ("l2", 0.3)])
@pytest.mark.parametrize(("shape", "n"), [((3, 4, 4), 1), ((1, 7, 5), 4)])
def test_on_a_linear_model_the_closed_form_is_reached(norm: str, eps: float, shape: tuple[int, ...], n: int) -> None:
    weight = torch.randn(*shape, generator=generator(3, "w"))
    assert (_reached(PGD(norm=norm, eps=eps, steps=30, alpha=eps / 2), weight, n) > 0.999).all()


@dataclass(frozen=True, kw_only=True)
class _Mutant(PGD):
    """PGD with one line broken."""

    fault: str

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        sign = {"sign flipped": -1.0, "gradient zeroed": 0.0}.get(self.fault, 1.0)
        broken = ImageOracle(lambda x, rows: sign * oracle._objective(x, rows), oracle.counter)
        return super().ascend(broken, images, sample_ids, threat, start)


@pytest.mark.parametrize("fault", ["sign flipped", "zero steps", "gradient zeroed"])
def test_the_strength_check_notices_a_broken_attack(fault: str) -> None:
    _, weight = _linear()
    assert (_reached(_Mutant(fault="none"), weight) > 0.999).all()
    assert (_reached(_Mutant(fault=fault, steps=0 if fault == "zero steps" else 10), weight) < 0.5).all()


@pytest.mark.parametrize(("norm", "momentum"), [("linf", 0.0), ("l2", 0.0), ("linf", 1.0), ("linf", 0.5)])
def test_the_same_as_torchattacks_from_the_same_start(norm: str, momentum: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, images = SmallNet().eval(), torch.rand(8, 3, 8, 8, generator=generator(5))
    labels = net(images).argmax(1)
    eps, alpha = (4 / 255, 1 / 255) if norm == "linf" else (0.5, 0.1)
    settings = {"eps": eps, "alpha": alpha, "steps": 7}
    with torch.random.fork_rng():
        if momentum:
            other = torchattacks.MIFGSM(net, decay=momentum, **settings)
        else:
            other = (torchattacks.PGD if norm == "linf" else torchattacks.PGDL2)(net, random_start=False, **settings)
        theirs = other(images, labels)
    ours = PGD(norm=norm, random_start=False, keep="last", momentum=momentum, early_stop=False, **settings)
    found = ours(net, images, labels)
    assert (found.images - theirs).abs().max() < 1e-6
    assert torch.equal(found.success, net(theirs).argmax(1) != labels)


@pytest.mark.parametrize(
    "changed", [{}, {"keep": "last"}, {"restarts": 3}, {"momentum": 0.9}, {"norm": "l2", "eps": 0.4}]
)
def test_a_fooled_sample_leaves_and_nothing_changes_for_the_others(changed: dict[str, object]) -> None:
    net, images = SmallNet().eval(), torch.rand(40, 3, 8, 8, generator=generator(12))
    labels = net(images).argmax(1)
    attack = PGD(**{"eps": "3/255", "steps": 6, **changed})  # type: ignore[arg-type]
    left, stayed = attack(net, images, labels), attack.replace(early_stop=False)(net, images, labels)
    assert left.success.any()
    assert not left.success.all()
    assert (left.success >= stayed.success).all()
    assert (left.images - stayed.images)[~left.success].abs().max() < 1e-6
    assert (left.gradients[left.success] < stayed.gradients[left.success]).any()
    assert torch.equal(left.gradients[~left.success], stayed.gradients[~left.success])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["linf", "l2"]), st.floats(0, 1), st.integers(0, 3), st.integers(0, 99))
def test_ball_and_box_hold_and_the_input_stays(norm: str, eps: float, steps: int, seed: int) -> None:
    net, images = SmallNet().eval(), torch.rand(3, 3, 8, 8, generator=generator(seed)).round(decimals=1)
    before = images.clone()
    result = PGD(norm=norm, eps=eps, steps=steps, seed=seed)(net, images, torch.tensor([0, 1, 2]))
    assert torch.equal(images, before)
    assert (Linf(eps) if norm == "linf" else L2(eps)).audit(result.images, images).max() <= eps
    assert result.images.isfinite().all()
    if eps == 0:
        assert torch.equal(result.images, images)


def test_unbounded_eps_leaves_nothing_right() -> None:
    net, images = SmallNet().eval(), torch.rand(20, 3, 8, 8, generator=generator(6))
    assert PGD(eps=1.0, steps=20)(net, images, net(images).argmax(1)).success.all()


def test_a_planted_point_is_found() -> None:
    """The margin falls only near one corner of the ball, and the way there is uphill all along."""
    corner = torch.where(torch.rand(3, 8, 8, generator=generator(8)) > 0.5, 1.0, -1.0)
    images = torch.full((2, 3, 8, 8), 0.5)

    class Planted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = ((x - 0.5) / 0.1 * corner).flatten(1).mean(1)  # 1 at the corner of eps 0.1
            return torch.stack([torch.full_like(near, 0.97), near], dim=1)

    assert PGD(eps=0.1)(Planted(), images, torch.zeros(2, dtype=torch.long)).success.all()
    assert not PGD(eps=0.09)(Planted(), images, torch.zeros(2, dtype=torch.long)).success.any()


def _losses(net: nn.Module, images: Tensor, **changed: object) -> Tensor:
    hyper = {"eps": "4/255", "alpha": "1/255", "steps": 4, **changed}
    labels = net(images).argmax(1)
    found = PGD(**hyper, early_stop=False)(net, images, labels).images  # type: ignore[arg-type]
    return nn.functional.cross_entropy(net(found), labels, reduction="none").detach()


@pytest.mark.parametrize("changed", [{"steps": 8}, {"restarts": 3}])
def test_more_of_it_is_never_weaker_per_sample(changed: dict[str, object]) -> None:
    net, images = SmallNet().eval(), torch.rand(12, 3, 8, 8, generator=generator(9))
    weak, strong = _losses(net, images), _losses(net, images, **changed)
    assert (strong >= weak - 1e-6).all()
    assert strong.mean() > weak.mean()


@pytest.mark.parametrize(("keep", "reached"), [("best", 0), ("last", 4)])
def test_the_best_iterate_is_kept_or_the_last_one(keep: str, reached: int) -> None:
    """An objective whose height is told by the number of the call and whose slope always points up."""
    heights = iter([5.0, 1.0, 2.0, 1.0, 3.0])

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return total - total.detach() + next(heights)

    attack = PGD(eps=0.5, alpha=0.125, steps=4, random_start=False, keep=keep)
    found = attack.maximise(objective, torch.full((1, 3, 2, 2), 0.25), torch.arange(1))
    assert (found - 0.25).flatten().tolist() == [0.125 * reached] * 12


def test_success_grows_with_eps_and_from_noise_over_one_step_to_ten() -> None:
    net, images = SmallNet().eval(), torch.rand(60, 3, 8, 8, generator=generator(10))
    labels = net(images).argmax(1)
    rates = [PGD(eps=eps)(net, images, labels).success.sum() for eps in ("0", "2/255", "4/255", "8/255", "32/255")]
    assert rates == sorted(rates)
    assert 0 == rates[0] < rates[-1]
    noise, one, ten = (PGD(eps="8/255", steps=steps)(net, images, labels).success.sum() for steps in (0, 1, 10))
    assert noise < one <= ten


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, images = SmallNet().eval(), torch.rand(6, 3, 8, 8, generator=generator(11))
    labels, ids, attack = net(images).argmax(1), torch.arange(6) + 40, PGD(steps=3, restarts=2)
    whole = attack(net, images, labels, sample_ids=ids).images
    order = torch.tensor([4, 1, 5])
    assert (attack(net, images[order], labels[order], sample_ids=ids[order]).images - whole[order]).abs().max() < 1e-5
    assert torch.equal(attack(net, images, labels, sample_ids=ids).images, whole)
    assert not torch.equal(attack(net, images, labels, sample_ids=ids + 1).images, whole)


def test_nothing_of_model_or_generators_is_changed() -> None:
    net = SmallNet().train()
    net.layers[1].eval()
    net.layers[0].weight.requires_grad_(False)
    net.layers[4].bias.grad = gradient = torch.ones(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags, wanted = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    state, images = torch.get_rng_state(), torch.rand(2, 3, 8, 8, generator=generator(0))
    PGD(steps=2)(net, images, torch.tensor([0, 1]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert net.layers[4].bias.grad is gradient
    assert torch.equal(gradient, torch.ones(4))
    assert net.layers[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fault_in_the_middle_leaves_the_model_as_it_was() -> None:
    net, state = SmallNet().train(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), frozen(net):
        assert not net.training
        assert not any(weight.requires_grad for weight in net.parameters())
        net.layers[1].running_mean.fill_(7.0)
        torch.rand(1)
        raise ZeroDivisionError
    assert net.training
    assert all(weight.requires_grad for weight in net.parameters())
    assert (net.layers[1].running_mean == 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gradient_without_a_number_is_dropped_and_counted() -> None:
    images = torch.full((3, 3, 4, 4), 0.5)

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        slope = torch.tensor([1.0, 0.0, torch.nan])[rows]
        return slope * x.flatten(1).sum(1)

    counter = QueryCounter.of(3)
    radius = 0.1 * 48**0.5
    l2 = PGD(norm="l2", eps=radius, steps=4, keep="last")  # a NaN would spread over the whole image
    assert l2.maximise(objective, images, torch.arange(3)).isfinite().all()
    found = PGD(steps=4, eps=0.1, keep="last").maximise(objective, images, torch.arange(3), counter=counter)
    assert counter.nan_gradients.tolist() == [0, 0, 4]
    assert counter.zero_gradients.tolist() == [0, 4, 0]
    assert (found[0] > 0.6 - 1e-6).all()
    assert found.isfinite().all()


def test_what_is_spent_is_counted() -> None:
    net, images = SmallNet().eval(), torch.rand(2, 3, 8, 8, generator=generator(0))
    labels = net(images).argmax(1)
    result = PGD(steps=4, restarts=3, early_stop=False)(net, images, labels)
    assert result.gradients.tolist() == [12, 12]
    assert result.queries.tolist() == [15, 15]
    assert PGD(steps=4, keep="last", early_stop=False)(net, images, labels).queries.tolist() == [4, 4]
    wrong = PGD(steps=4, early_stop=False)(net, images, (labels + torch.tensor([1, 0])) % 4)
    assert wrong.gradients.tolist() == [0, 4]
    assert torch.equal(wrong.images[0], images[0])


BAD = [
    torch.full((1, 3, 4, 4), 1.01),
    torch.full((1, 3, 4, 4), -0.01),
    torch.full((1, 3, 4, 4), torch.nan),
    torch.zeros(3, 4, 4),
    torch.zeros(1, 3, 4, 4).double(),
]


@pytest.mark.parametrize("bad", BAD)
def test_images_out_of_range_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        PGD()(SmallNet().eval(), bad, torch.tensor([0]))


def test_a_search_that_cheats_is_caught() -> None:
    class Far(PGD):
        def ascend(
            self,
            oracle: ImageOracle,
            images: Tensor,
            sample_ids: Sequence[int],
            threat: ThreatModel,
            start: Tensor | None,
        ) -> Tensor:
            return 1 - images

    class Scribbler(PGD):
        def ascend(
            self,
            oracle: ImageOracle,
            images: Tensor,
            sample_ids: Sequence[int],
            threat: ThreatModel,
            start: Tensor | None,
        ) -> Tensor:
            return images.add_(0.01)

    net, images = SmallNet().eval(), torch.rand(2, 3, 8, 8, generator=generator(0)) / 2
    labels = net(images).argmax(1)
    assert Far(eps=0.1)(net, images, labels).norm.max() <= 0.1  # the base projects
    before = images.clone()
    with pytest.raises(RuntimeError, match="wrote into its input"):
        Scribbler()(net, images, labels)
    assert torch.equal(images, before)


def test_success_is_judged_on_the_output_and_nan_logits_are_an_error() -> None:
    classifier, images = LinearClassifier(torch.ones(3, 2, 2), -6.0), torch.full((1, 3, 2, 2), 0.52)
    assert not PGD(eps=0.019)(classifier, images, torch.tensor([1])).success.any()
    assert PGD(eps=0.021)(classifier, images, torch.tensor([1])).success.all()
    classifier.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        PGD()(classifier, images, torch.tensor([1]))


def test_hyper_parameters_show_and_are_checked() -> None:
    assert repr(PGD(eps="4/255", steps=1, seed=3)) == (
        f"PGD(seed=3, norm='linf', eps={4 / 255}, loss='cross_entropy', early_stop=True, steps=1, alpha=None, "
        "random_start=True, restarts=1, momentum=0.0, keep='best')"
    )
    assert PGD(steps=1).step_size(4 / 255) == 5 / 255
    assert PGD(steps=10).step_size(0.1) == pytest.approx(0.025)
    assert PGD(alpha="1/255").step_size(0.1) == 1 / 255
    assert PGD(steps=1).crosses(0.1) and PGD(steps=4, alpha=0.025).crosses(0.1)
    assert not PGD(steps=3, alpha=0.025).crosses(0.1)
    alone = [
        {"norm": "l1"},
        {"steps": -1},
        {"steps": 1.5},
        {"alpha": "x"},
        {"loss": "galery"},
        {"keep": "first"},
        {"momentum": -1},
    ]
    clashes = [{"restarts": 2, "random_start": False}, {"restarts": 2, "loss": "infonce"}]
    for bad in [*alone, *clashes, {"loss": "infonce", "keep": "best"}]:
        with pytest.raises(UserError, match=rf"(attack|threat)\.({'|'.join(bad)})(=| is)"):
            PGD(**bad)  # type: ignore[arg-type]
