"""Attacks that look for the smallest change; what holds for every attack stands in `test_contract`.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import (
    ALMA,
    CW,
    DDN,
    FAB,
    FMN,
    DeepFool,
    MinimumNorm,
    MinimumNormAttack,
    ReducedAutoAttack,
    ThreatModel,
)
from robustcli.attacks.core.balls import L2, ball
from robustcli.attacks.core.class_losses import LogitScale
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.image.alma import _Multipliers, _penalty_slope
from robustcli.attacks.image.cw import _SearchOfC
from robustcli.attacks.image.hyperplane import Hyperplane
from robustcli.attacks.image.nearest import NearestAdversarials
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import LinearClassifier, SmallNet

# Settings that are strong enough for a linear model and for `SmallNet`, and fast.
ATTACKS: Mapping[str, MinimumNormAttack] = {
    "deepfool l2": DeepFool(),
    "deepfool linf": DeepFool(norm="linf"),
    "fab l2": FAB(norm="l2", steps=10),
    "fab linf": FAB(steps=10),
    "fab-t l2": FAB(norm="l2", steps=10, targets=3),
    "fab restarts": FAB(norm="l2", steps=5, restarts=2),
    "fmn l2": FMN(steps=50),
    "fmn linf": FMN(norm="linf", steps=50),
    "cw": CW(steps=60, search_steps=6, c=0.1, lr=0.1),
    "ddn": DDN(steps=30),
    "alma": ALMA(steps=40),
    "minimum norm l2": MinimumNorm(members=("ddn", "fmn"), steps=30),
    "minimum norm linf": MinimumNorm(norm="linf", members=("ddn", "fmn"), steps=30),
}


def inputs(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = SmallNet().eval(), torch.rand(n, 3, 8, 8, generator=generator(50))
    return net, images, net(images).argmax(1)


def boxed(norm: str, n: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier, images of which most pixels stand at or near the box, labels, and their distances (N,) to
    the boundary inside the box.
    """
    shape = (1, 6, 6)
    weight = torch.randn(shape, generator=generator(51))
    images = (2 * torch.rand(n, *shape, generator=generator(52)) - 0.5).clamp(0, 1)
    score = images.flatten(1) @ weight.flatten()
    model = LinearClassifier(weight, float(1.0 - score.amin()))
    gap, slope = score + model.bias.detach(), weight.expand(n, *shape)
    distance = ball(norm, 0.0).distance(images + Hyperplane(gap, slope).projection_step(images, norm), images)
    free = gap / (weight.norm() if norm == "l2" else weight.abs().sum())
    assert (distance > 1.05 * free).any(), "the box stands in nobody's way"
    return model, images, torch.ones(n, dtype=torch.long), distance


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_on_a_linear_model_the_box_is_reckoned_with(name: str, n: int) -> None:
    attack = ATTACKS[name]
    model, images, labels, distance = boxed(attack.norm, 5)
    found = attack(model, images[:n], labels[:n])
    assert found.success.all()
    assert (found.norm >= distance[:n] * (1 - 1e-5)).all()
    assert (found.norm <= 1.25 * distance[:n]).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_moves_the_wrong_way_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation of the test above: with the sign of its gradients flipped no attack comes near."""
    attack, gradient = ATTACKS[name], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: (-gradient(*args, **kwargs)[0],))
    model, images, labels, distance = boxed(attack.norm, 3)
    found = attack(model, images, labels)
    assert not (found.norm <= 1.25 * distance).any()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_norm_is_that_of_images_that_mislead(name: str) -> None:
    net, images, labels = inputs(6)
    found = ATTACKS[name](net, images, labels)
    assert found.success.all()
    assert (net(found.images).argmax(1) != labels).all()
    assert torch.equal(found.norm, ball(ATTACKS[name].norm, 0.0).distance(found.images, images))
    assert (found.norm > 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_does_not_depend_on_its_batch_mates(name: str) -> None:
    """Beside one that is wrong already and one that is hard, whose searches end sooner and later.

    In float64: RMSProp and the walk along the boundary blow the rounding of another batch size up.
    """
    bare, images, _ = inputs(5)
    exact = bare.double()
    net = lambda x: exact(x.double()).float()  # noqa: E731
    images[4] = (images[4] * 0.05).clamp(0, 1)
    labels = net(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    whole = ATTACKS[name](net, images, labels, sample_ids=torch.arange(5))
    for i in range(5):
        alone = ATTACKS[name](net, images[i : i + 1], labels[i : i + 1], sample_ids=torch.tensor([i]))
        assert torch.allclose(whole.images[i], alone.images[0], atol=1e-5)
        assert int(whole.queries[i]) == int(alone.queries[0])
        assert int(whole.gradients[i]) == int(alone.gradients[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_found_is_infinitely_far_and_wrong_already_is_at_home(name: str) -> None:
    weight = 0.01 * torch.randn(1, 6, 6, generator=generator(53))
    images = torch.rand(2, 1, 6, 6, generator=generator(54))
    found = ATTACKS[name](LinearClassifier(weight, 1.0), images, torch.tensor([1, 0]))
    assert found.success.tolist() == [False, True]
    assert found.norm.tolist() == [torch.inf, 0.0]
    assert torch.equal(found.images, images)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_without_gradients_leaves_images_as_they_are(name: str) -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, -1.0])

    images = torch.rand(2, 1, 4, 4, generator=generator(55))
    found = ATTACKS[name](Flat(), images, torch.zeros(2, dtype=torch.long))
    assert torch.equal(found.images, images)
    assert (found.norm == torch.inf).all()
    assert (found.zero_gradients == found.gradients).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_eps_says_which_successes_count(name: str) -> None:
    net, images, labels = inputs(8)
    free = ATTACKS[name](net, images, labels)
    eps = float(free.norm.median()) * 1.001
    bounded = ATTACKS[name].replace(eps=eps)(net, images, labels)
    assert torch.equal(bounded.success, bounded.norm <= eps)
    assert 0 < bounded.success.sum() < 8


def test_what_deepfool_spends() -> None:
    net, images, labels = inputs(8)
    every, top = (
        DeepFool(classes=None, refine=0)(net, images, labels),
        DeepFool(classes=3, refine=0)(net, images, labels),
    )
    assert torch.equal(every.gradients % 3, torch.zeros(8, dtype=torch.long))
    assert torch.equal(every.queries, every.gradients // 3 * 2)
    assert torch.equal(top.queries, top.gradients // 2 * 2)
    assert int(DeepFool(steps=0, refine=0)(net, images, labels).queries.sum()) == 0


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_crosses_a_plane_in_one_step_by_its_overshoot(norm: str, overshoot: float) -> None:
    model, images, labels, _ = boxed(norm, 3)
    images = 0.5 + 0.1 * (images - 0.5)  # the box stands in nobody's way
    weight, gap = model.weight.detach(), model(images)[:, 1] - model(images)[:, 0]
    found = DeepFool(norm=norm, overshoot=overshoot, refine=0)(model, images, labels)
    expected = gap / (weight.norm() if norm == "l2" else weight.abs().sum())
    assert found.norm.tolist() == pytest.approx(((1 + overshoot) * expected).tolist(), rel=1e-3)
    assert found.gradients.tolist() == [1] * 3


def test_fooled_samples_leave_deepfool() -> None:
    """The steeper a logit is far from the boundary, the shorter is the first move."""
    model, images, labels, _ = boxed("l2", 5)
    bent = lambda x: model(x).sinh()  # noqa: E731
    assert (DeepFool(refine=0)(model, images, labels).gradients == 1).all()
    spent = DeepFool(refine=0)(bent, images, labels).gradients
    assert spent.unique().numel() > 1


def test_what_fab_spends() -> None:
    net, images, labels = inputs(3)
    found, targeted = FAB(steps=4)(net, images, labels), FAB(steps=4, targets=2, restarts=2)(net, images, labels)
    assert found.queries.tolist() == [1 + 4 * 2] * 3
    assert found.gradients.tolist() == [4 * 3] * 3
    assert targeted.queries.tolist() == [1 + 2 * 2 * 4 * 2] * 3
    assert targeted.gradients.tolist() == [2 * 2 * 4] * 3


def test_fab_lets_go_of_what_is_near_enough() -> None:
    net, images, labels = inputs(8)
    free = FAB(norm="l2", steps=10)(net, images, labels)
    near = FAB(norm="l2", steps=10, eps=float(free.norm.max()) * 1.5)(net, images, labels)
    assert near.success.all()
    assert near.gradients.sum() < free.gradients.sum() / 2
    assert (near.norm >= free.norm).all()


def test_a_sample_that_is_near_enough_costs_fab_no_restart() -> None:
    net, images, labels = inputs(8)
    passes = list[int]()
    net.register_forward_hook(lambda *_: passes.append(1))
    once = FAB(norm="l2", steps=10, eps=5.0)(net, images, labels)
    spent = len(passes)
    again = FAB(norm="l2", steps=10, eps=5.0, restarts=3)(net, images, labels)
    assert once.success.all() and torch.equal(again.queries, once.queries)
    assert len(passes) == 2 * spent, "nor passes that no sample is charged for"


def test_fab_takes_the_steps_of_its_paper() -> None:
    """Equations 9 and 10 on a plane: from the clean image onto it and a little beyond, nine tenths of the way back, and
    then between the projections of both.
    """
    weight, asked = torch.tensor([3.0, 4.0]), list[Tensor]()
    clean, attack = torch.full((1, 1, 1, 2), 0.5), FAB(norm="l2", steps=3, alpha_max=0.4, eta=1.2)

    class Plane(LinearClassifier):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(images.detach().flatten())
            return super().forward(images)

    model, labels = Plane(weight, -3.0), torch.ones(1, dtype=torch.long)  # 0.1 from the plane
    threat = attack.threat
    attack.search(LogitOracle(model, QueryCounter.of(1)), clean, labels, torch.arange(1), threat)
    _, start, first, back, second, *_ = asked
    away = -weight / 5
    assert torch.equal(start, clean.flatten())
    assert torch.allclose(first, start + 1.2 * 0.1 * away, atol=1e-4)
    assert torch.allclose(back, start + 0.9 * (first - start), atol=1e-4)
    beyond = 0.9 * 0.12 - 0.1  # ``back`` lies so far on the other side
    share = beyond / (beyond + 0.1)
    assert 0 < share < 0.4
    onto = back - 1.2 * beyond * away
    assert torch.allclose(second, onto + share * (first - onto), atol=1e-4)


def test_the_members_of_the_reduced_autoattack_let_go_of_what_is_near_enough() -> None:
    net, images, labels = inputs(8)
    attack = ReducedAutoAttack(cross_entropy=[1], dlr=[], steps=4, fab_steps=10)
    free = attack(net, images, labels)
    radius = float(free.norm.max()) * 1.2
    assert radius < 1
    near = attack(net, images, labels, attack.threat.at(radius))
    assert near.success.all() and (near.norm >= free.norm).all()
    assert near.gradients.sum() < free.gradients.sum() / 2


def test_a_radius_of_nothing_adds_nothing_to_the_reduced_autoattack() -> None:
    net, images, labels = inputs(3)
    attack = ReducedAutoAttack(cross_entropy=[0, 0.2], dlr=[0], steps=4, fab_steps=4)
    found, without = (each(net, images, labels) for each in (attack, attack.replace(cross_entropy=[0.2], dlr=[])))
    assert torch.equal(found.images, without.images) and torch.equal(found.gradients, without.gradients)


class Lucky(nn.Module):
    """A classifier of which one answer in ten is turned round."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__()
        self.bare = bare

    def forward(self, images: Tensor) -> Tensor:
        turned = torch.rand(len(images)) < 0.1
        logits: Tensor = self.bare(images)
        return torch.where(turned[:, None], -logits, logits)


@pytest.mark.parametrize("attack", [CW(steps=40, search_steps=3), DeepFool(norm="l2"), FMN(norm="l2", steps=40)])
def test_a_lucky_draw_is_no_success(attack: MinimumNormAttack) -> None:
    net, images = SmallNet().eval(), torch.rand(16, 3, 8, 8, generator=generator(40))
    labels = net(images).argmax(1)
    true, drawn = attack(net, images, labels), attack(Lucky(net), images, labels)
    moved = (drawn.images - images).flatten(1).norm(dim=1).double()
    assert float((moved / true.norm).median()) > 0.8
    assert int((moved < 0.5 * true.norm).sum()) <= 4  # in the two hundred answers of a search one in a thousand is left


@pytest.mark.parametrize("randomised", [False, True])
def test_no_change_at_all_is_no_success_against_a_model_that_draws(randomised: bool) -> None:
    clean, rows, wrong = torch.full((2, 3, 8, 8), 0.5), torch.arange(2), torch.tensor([[0.0, 1.0]]).expand(2, -1)
    oracle = LogitOracle(lambda images: wrong[: len(images)], QueryCounter.of(2), randomised=randomised)
    best = NearestAdversarials(clean, torch.zeros(2, dtype=torch.long), ball("l2", None), oracle)
    assert best.update(clean, rows, wrong).tolist() == [not randomised] * 2
    assert best.update(clean + 0.01, rows, wrong).all()
    assert bool((best.norm > 0).all()) == randomised


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_restart_begins_half_as_far_as_what_is_known_by_a_draw_of_its_own(norm: str) -> None:
    clean, ids, rows = torch.full((4, 3, 8, 8), 0.5), torch.arange(4) + 7, torch.arange(4)
    oracle = LogitOracle(nn.Identity(), QueryCounter.of(4))
    best = NearestAdversarials(clean, torch.zeros(4, dtype=torch.long), ball(norm, None), oracle)
    best.norm[1] = 0.02
    assert torch.equal(best.first_iterates(rows, ids, 0.3, 0, "fab", 0), clean)
    first, second = best.first_iterates(rows, ids, 0.3, 0, "fab", 1), best.first_iterates(rows, ids, 0.3, 0, "fab", 2)
    distance = ball(norm, 0.0).distance(first, clean)
    assert distance.tolist() == pytest.approx([0.15, 0.01, 0.15, 0.15], rel=1e-4)
    assert torch.allclose(best.first_iterates(rows[2:], ids, 0.3, 0, "fab", 1), first[2:])
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[2], first[3])


def test_a_restart_of_fab_finds_what_the_clean_image_hides() -> None:
    """No gradient where the search begins, and one that leads to the boundary all around."""
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)

    class Pit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            away = (x - 0.5).square().flatten(1).sum(1)
            return torch.stack([torch.full_like(away, 0.04), away], dim=1)

    once, twice = (FAB(norm="l2", steps=20, restarts=n)(Pit(), images, labels) for n in (1, 2))
    assert not once.success.any()
    assert twice.norm.tolist() == pytest.approx([0.2, 0.2], rel=0.02)


def test_each_constant_of_cw_is_searched_for_on_its_own() -> None:
    """Of two samples whose margins differ twentyfold a single constant serves only one."""
    net, images, labels = inputs(2)
    scale = torch.tensor([[20.0], [1.0]])
    model = lambda x: net(x) * (scale if len(x) == 2 else scale[-len(x) :])  # noqa: E731
    assert CW(c=0.01, steps=40, search_steps=1, refine=0)(model, images, labels).success.tolist() == [True, False]
    assert CW(c=0.01, steps=40, search_steps=6, refine=0)(model, images, labels).success.all()


def test_cw_multiplies_its_constant_until_a_success_and_bisects_from_then_on() -> None:
    search, constants = _SearchOfC(torch.tensor([1.0, 1.0])), []
    for fooled in ([False, True], [False, False], [True, True], [False, True]):
        search.update_c(torch.tensor(fooled))
        constants.append(search.c.tolist())
    assert constants == [[10.0, 0.5], [100.0, 0.75], [55.0, 0.625], [77.5, 0.5625]]


def test_a_descent_of_cw_says_whom_it_fooled_on_its_way() -> None:
    net, images, labels = inputs(4)
    attack = CW(steps=40, lr=0.05)
    for c, expected in ((100.0, True), (1e-9, False)):
        oracle = LogitOracle(net, QueryCounter.of(4))
        best = NearestAdversarials(images, labels, attack.threat.ball, oracle)
        start = torch.asin((2 * images - 1) * (1 - 1e-6))
        fooled = attack._descend(oracle, best, start, torch.full((4,), c), LogitScale(labels))
        assert fooled.tolist() == (best.norm < torch.inf).tolist() == [expected] * 4


def test_the_ball_of_fmn_shrinks_after_a_success_and_grows_otherwise() -> None:
    """Samples: fooled far out, fooled near the best, not fooled before a success, and after one."""
    radius, best = torch.tensor([1.0, 1.0, torch.inf, 1.0]), torch.tensor([3.0, 0.5, torch.inf, 0.4])
    fooled, boundary = torch.tensor([True, True, False, False]), torch.tensor([9.0, 9.0, 2.0, 9.0])
    following = FMN()._next_radius(radius, best, fooled, boundary, 0.1)
    assert following.tolist() == pytest.approx([0.9, 0.5, 2.0, 1.1])


def test_a_sample_of_cw_stops_on_its_own() -> None:
    net, images, labels = inputs(8)
    spent = CW(c=5, steps=400, search_steps=1, refine=0)(net, images, labels).gradients
    assert spent.unique().numel() > 2
    assert spent.min() <= 200


def test_the_better_of_two_restarts_of_cw_is_kept() -> None:
    net, images, labels = inputs(8)
    once, twice = (CW(c=1, steps=10, lr=0.1, search_steps=1, restarts=n, refine=0)(net, images, labels) for n in (1, 2))
    assert (twice.norm <= once.norm).all()
    assert (twice.norm < once.norm).any()


@pytest.mark.parametrize("kappa", [0.0, 100.0])
def test_cw_descends_on_its_loss(kappa: float) -> None:
    """By the chain rule through the sine: all samples short of their confidence, or some."""
    net, images, labels = inputs(4)
    labels[0] = (labels[0] + 1) % 4  # wrong already
    attack, oracle = CW(kappa=kappa), LogitOracle(net, QueryCounter.of(4))
    best = NearestAdversarials(images, labels, attack.threat.ball, oracle)
    rows, c = torch.arange(4), torch.tensor([0.3, 1.0, 2.0, 5.0])
    w = torch.randn(4, 3, 8, 8, generator=generator(61)).requires_grad_()
    loss, gradient, _ = attack._loss(oracle, best, w.detach(), rows, c, lambda logits, _: logits)  # type: ignore[arg-type]
    x_adv = (w.sin() + 1) / 2
    logits = net(x_adv)
    label_logit = logits.gather(1, labels[:, None])[:, 0]
    margins = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - label_logit
    expected = (x_adv - images).square().flatten(1).sum(1) + c * (kappa - margins).clamp(min=0)
    (slope,) = torch.autograd.grad(expected.sum(), w)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_cw_ends_at_the_decision_boundary() -> None:
    """Steps that are too large by far overshoot; what they found is shortened on the way back."""
    net, images, labels = inputs(8)
    found = CW(c=1, steps=3, lr=0.3, search_steps=1, refine=0)(net, images, labels)
    nearer = images + 0.98 * (found.images - images)
    assert found.success.all()
    assert (net(nearer).argmax(1) == labels).sum() >= 6  # a way may cross the boundary more than once


@pytest.mark.parametrize(
    ("attack", "settings", "key"),
    [
        (CW, {"norm": "linf"}, "norm"),
        (CW, {"c": 0}, "c"),
        (CW, {"search_steps": 0}, "search_steps"),
        (DeepFool, {"classes": 1}, "classes"),
        (DeepFool, {"norm": "l1"}, "norm"),
        (DeepFool, {"overshoot": -1}, "overshoot"),
        (FAB, {"beta": 1.0}, "beta"),
        (FAB, {"eta": 0.5}, "eta"),
        (FAB, {"alpha_max": 2}, "alpha_max"),
        (FAB, {"targets": -1}, "targets"),
        (FMN, {"steps": -1}, "steps"),
        (FMN, {"eps": 8}, "eps"),
    ],
)
def test_impossible_settings_are_named(attack: type[MinimumNormAttack], settings: dict[str, Any], key: str) -> None:
    if attack is FMN and key == "eps":
        settings = {**settings, "norm": "linf"}
    with pytest.raises(UserError, match=rf"{'threat' if key in ('norm', 'eps') else 'attack'}\.{key} is"):
        attack(**settings)


def test_a_lead_that_could_be_rounding_does_not_count() -> None:
    images, rows = torch.rand(2, 1, 2, 2, generator=generator(60)), torch.arange(2)
    best = NearestAdversarials(
        images, torch.zeros(2, dtype=torch.long), ball("l2", None), LogitOracle(lambda x: x, QueryCounter.of(2))
    )
    assert best.update(images, rows, torch.tensor([[100.0, 100.0001], [100.0, 100.01]])).tolist() == [False, True]
    assert not best.update(images, rows, torch.tensor([[0.0, 1e-4], [0.0, 0.0]])).any(), "the first logits were 100"
    assert best.update(images, rows, torch.tensor([[0.0, 2e-3], [0.0, 2e-3]])).all()


BINARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "one logit is zero": lambda score: torch.stack([torch.zeros_like(score), score], dim=1),
    "both vanish at the boundary": lambda score: torch.stack([-score, score], dim=1) / 2,
}


@pytest.mark.parametrize("form", BINARY)
@pytest.mark.parametrize("name", ["deepfool l2", "deepfool linf", "fab l2", "fmn l2", "cw", "ddn"])
def test_logits_that_vanish_at_the_boundary_do_not_stop_a_search(name: str, form: str) -> None:
    """The same network with 1 added to both logits has the same boundary."""
    net, images, _ = inputs(24)
    score = lambda x: net(x)[:, 0] - net(x)[:, 1]  # noqa: E731
    labels = (score(images) > 0).long()
    vanishing, shifted = (
        ATTACKS[name](lambda x, shift=shift: BINARY[form](score(x)) + shift, images, labels).norm for shift in (0, 1)
    )
    assert ((vanishing - shifted) / shifted).abs().max() < 3e-4


class Flats(nn.Module):
    """Clipped logits of a layer of sines: steps along its gradients mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(4, 8, 36, generator=generator(58)) / 6

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.einsum("bd,khd->bkh", images.flatten(1) - 0.5, self.weight)
        logits: Tensor = hidden.amax(2) + 0.3 * (4 * hidden).sin().sum(2)
        return logits.clamp(-1.2, 1.2)


def flats(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = Flats(), torch.rand(n, 1, 6, 6, generator=generator(59))
    logits = net(images)
    sole = (logits == logits.amax(1, keepdim=True)).sum(1) == 1
    return net, images[sole], logits.argmax(1)[sole]


REFINED: Mapping[str, MinimumNormAttack] = {
    "deepfool l2": DeepFool(),
    "deepfool linf": DeepFool(norm="linf"),
    "fmn l2": FMN(steps=40),
    "fmn linf": FMN(norm="linf", steps=40),
    "cw": CW(steps=30, search_steps=4),
    "ddn": DDN(steps=40),
    "alma": ALMA(steps=60),
}


@pytest.mark.parametrize("name", REFINED)
def test_refinement_loses_no_sample_and_comes_nearer(name: str) -> None:
    net, images, labels = flats(60)
    plain, refined = (REFINED[name].replace(refine=steps)(net, images, labels) for steps in (0, 30))
    assert refined.success.all()
    assert (refined.norm <= plain.norm).all()
    assert refined.norm.mean() < 0.999 * plain.norm.mean()


def test_a_boundary_beyond_the_reach_of_a_search_is_found() -> None:
    """Logits without a gradient around the clean image, as clipped ones have."""
    net, images, labels = Flats(), torch.rand(200, 1, 6, 6, generator=generator(59)), torch.empty(0)
    logits = 3 * net(images)
    clipped = lambda x: (3 * net(x)).clamp(-1, 1) - torch.arange(4) * 1e-3  # noqa: E731
    flat = logits.abs().amin(1) > 1
    labels = clipped(images).argmax(1)
    assert flat.sum() > 5
    found = FMN(steps=20)(clipped, images[flat], labels[flat])
    assert found.success.float().mean() > 0.8
    assert not FMN(steps=20, refine=0)(clipped, images[flat], labels[flat]).success.any()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.split()[0] in ("fmn", "cw", "ddn", "alma")])
def test_the_search_alone_comes_near_on_a_linear_model(name: str) -> None:
    attack = ATTACKS[name].replace(refine=0)
    model, images, labels, distance = boxed(attack.norm, 5)
    found = attack(model, images, labels)
    assert (found.norm >= distance * (1 - 1e-5)).all() and (found.norm <= 1.25 * distance).all()


class Plane(LinearClassifier):
    """Two pixels; the image of both 0.5 stands 0.1 before the boundary. It notes what it is asked for."""

    clean, labels = torch.full((1, 1, 1, 2), 0.5), torch.ones(1, dtype=torch.long)

    def __init__(self) -> None:
        super().__init__(torch.tensor([3.0, 4.0]), -3.0)
        self.asked = list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.asked += images.detach().flatten(1)
        return super().forward(images) + 1

    def attacked(self, attack: MinimumNormAttack) -> Tensor:
        """Distance (1,) of the result of the search."""
        oracle = LogitOracle(self, QueryCounter.of(1))
        found = attack.search(oracle, self.clean, self.labels, torch.arange(1), attack.threat)
        return (found - self.clean).flatten(1).norm(dim=1)


def test_ddn_takes_the_steps_of_its_paper() -> None:
    """From the clean image onto a sphere, which shrinks after a success and grows otherwise; the last iterate counts
    too. Steps that are far too short are stretched onto it.
    """
    plane = Plane()
    found = plane.attacked(DDN(steps=9, alpha=0.01, gamma=0.2, radius=0.3, refine=0))
    radii = [0.3]
    for _ in range(8):
        radii.append(radii[-1] * (0.8 if radii[-1] > 0.1 else 1.2))
    norms = [float((each - plane.clean.flatten()).norm()) for each in plane.asked]
    assert norms == pytest.approx([0.0, *radii], rel=1e-4, abs=1e-7)
    assert float(found) == pytest.approx(min(radius for radius in radii if radius > 0.1), rel=1e-4)


def test_the_steps_of_ddn_shrink_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, step = list[float](), L2.step
    monkeypatch.setattr(L2, "step", lambda self, gradient, size: (sizes.append(size), step(self, gradient, size))[1])
    Plane().attacked(DDN(steps=4, alpha=2.0, refine=0))
    half = 0.5**0.5
    assert sizes == pytest.approx([0.02 + 1.98 * share / 2 for share in (2, 1 + half, 1, 1 - half)])


def test_the_weight_of_the_constraint_of_alma_is_that_of_its_paper() -> None:
    """Derivative of the penalty P2; rho grows where the constraint has not fallen by 5 % and nothing ever fooled, and
    mu is a moving average.
    """
    y = torch.tensor([-2.0, -0.3, 0.0, 0.4, 3.0]).requires_grad_()
    rho, mu = torch.tensor([1.0, 2.0, 1.5, 0.5, 3.0]), torch.tensor([1.0, 0.2, 3.0, 2.0, 0.7])
    penalty = torch.where(y >= 0, mu * y + mu * rho * y**2 + rho**2 * y**3 / 6, mu * y / (1 - rho * y.clamp(max=0)))
    (slope,) = torch.autograd.grad(penalty.sum(), y)
    assert _penalty_slope(y.detach(), rho, mu).tolist() == pytest.approx(slope.tolist(), rel=1e-5)
    state, never = _Multipliers(torch.zeros(3)), torch.zeros(3, dtype=torch.bool)
    assert state.update(torch.ones(3), never, 0, 0.5).tolist() == [3.5] * 3
    constraint = torch.tensor([1.0, 0.5, 1.0])
    weight = state.update(constraint, torch.tensor([False, False, True]), 1, 0.5)
    assert weight[0] == 2.25 + 2 * 2.25 + 0.5  # mu: halfway from 1 to 3.5
    for step in range(2, 10):
        state.update(constraint, never, step, 0.5)
    assert state._rho.tolist() == pytest.approx([1.2, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Sideways(RefinedMinimumNorm):
    """A search that ends far beyond the boundary, and not in the direction of its nearest point."""

    def approach_passes(self, problem: Problem) -> Passes:
        return Passes(forward=1)

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        x_adv, rows = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2), torch.arange(1)
        best.update(x_adv, rows, oracle.logits(x_adv, rows))


def test_the_walk_begins_at_the_boundary_and_looks_for_a_nearer_one() -> None:
    plane = Plane()
    found = plane.attacked(Sideways(refine=30))
    _, *bisection = plane.asked[:9]
    first, walk = plane.asked[9], plane.asked[9:]
    assert bisection[0].tolist() == [0.25, 0.5]
    assert 0.5 - float(first[0]) == pytest.approx(1 / 6, abs=0.5 / 2**8)
    assert float(found) == pytest.approx(0.1, rel=0.01)
    steps = list(zip(walk[1::2], walk[2::2], strict=False))  # each is judged, and the next begins there or nearer
    fooled = [3 * float(x[0]) + 4 * float(x[1]) - 3 < -1e-4 for x, _ in steps]
    assert any(fooled)
    for (x_adv, following), success in zip(steps, fooled, strict=True):
        assert not success or torch.allclose(following, 0.5 + 0.9 * (x_adv - 0.5), atol=1e-6)


def test_what_no_search_reaches_is_looked_for_from_several_starts() -> None:
    asked = set[tuple[float, ...]]()

    def flat(images: Tensor) -> Tensor:
        asked.update(tuple(image.flatten().tolist()) for image in images.detach())
        return 0 * images.flatten(1)[:, :2] + torch.tensor([0.0, 1.0])

    DeepFool(steps=0)(flat, Plane.clean, Plane.labels)
    assert len(asked) == 6 and (0.5, 0.5) in asked


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_ensemble_is_the_least_of_its_members(norm: str) -> None:
    net, images, labels = inputs(8)
    names = ("deepfool", "fmn", *(("ddn", "alma") if norm == "l2" else ()))
    found = MinimumNorm(norm=norm, steps=20, members=("deepfool", "fmn", "ddn", "alma"))(net, images, labels)
    members = {"deepfool": DeepFool(), "fmn": FMN(steps=20), "ddn": DDN(steps=20), "alma": ALMA(steps=40)}
    alone = [members[name](net, images, labels, ThreatModel(norm=norm, eps=None)) for name in names]
    norms = torch.stack([each.norm for each in alone])
    assert torch.equal(found.norm, norms.amin(0))
    assert list(found.members) == [names[i] for i in norms.argmin(0).tolist()]
    # A pass more judges each member; one for another norm costs nothing.
    assert torch.equal(found.queries, sum(each.queries + 1 for each in alone))
    assert torch.equal(found.gradients, sum(each.gradients for each in alone))


def test_the_ensemble_lets_go_of_what_is_near_enough() -> None:
    net, images, labels = inputs(8)
    attack = MinimumNorm(steps=20, members=("deepfool", "ddn"))
    free = attack(net, images, labels)
    near = attack(net, images, labels, attack.threat.at(2 * float(free.norm.max())))
    assert near.success.all() and near.gradients.sum() < free.gradients.sum() / 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DDN(norm="linf"), "attack=fmn is for both norms"),
        (lambda: ALMA(norm="linf"), "attack=fmn is for both norms"),
        (lambda: ALMA(memory=1.0), r"attack\.memory is 1\.0"),
        (lambda: MinimumNorm(members=("ddm",)), "ddm"),
        (lambda: DDN(refine=-1), r"refine"),
    ],
)
def test_what_the_searches_refuse(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()
