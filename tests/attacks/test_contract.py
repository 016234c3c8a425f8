"""Contract of every attack on classifiers; an attack joins with its row in `ATTACKS`.

An attack is tested with the norms that its `check` serves; strength is asked of all but a `baseline`.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.attacks import (
    ClassifierAttack,
    ImageAdversarial,
    LogitOracle,
    Square,
    ThreatModel,
    TorchAttack,
)
from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.attacks.core.balls import ball
from robustcli.utils.errors import UserError
from robustcli.utils.rowwise import filled
from robustcli.utils.seeding import generator

from .conftest import LinearClassifier, SmallNet, attack_of, family, inputs, names_of, norms_of

# How far beyond the true distance an attack may need to go on a linear model, if not 1.05 times.
SLACK: Mapping[tuple[str, str], float] = {("square", "linf"): 1.2, ("square", "l2"): 2.0}
# Weak and strong settings: with nested draws the strong one fools whatever the weak one does, per sample.
NESTED: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = (
    ("pgd", {"restarts": 1, "steps": 3}, {"restarts": 4, "steps": 3}),
    ("pgd", {"steps": 2, "alpha": 0.01}, {"steps": 8, "alpha": 0.01}),
    ("apgd", {"restarts": 1, "steps": 5}, {"restarts": 4, "steps": 5}),
)
# Settings under which the totals may not fall, though a sample may.
GROWING: Sequence[tuple[str, str, Sequence[Any]]] = (
    ("pgd", "steps", (1, 4, 16)),
    ("apgd", "steps", (2, 8, 32)),
    ("square", "queries", (1, 30, 300)),
)
NAMES = names_of(ClassifierAttack)
NORMS = ("linf", "l2")
SERVED = {name: norms_of(name) for name in NAMES}
BOUNDED = [name for name in NAMES if not attack_of(name).minimum_norm]
STRONG = [name for name in BOUNDED if not attack_of(name).baseline]
IN_NORM = [(name, norm) for name in NAMES for norm in SERVED[name]]
STRONG_IN_NORM = [(name, norm) for name, norm in IN_NORM if name in STRONG]
MINIMUM_IN_NORM = [(name, norm) for name, norm in IN_NORM if name not in BOUNDED]
OF_BATCHES = [name for name in NAMES if issubclass(family(name), TorchAttack)]  # whose draws are those of a batch
EPS = {"linf": 0.02, "l2": 0.2}  # about half of the images of `SmallNet` fall
FAR = {"linf": 0.1, "l2": 1.0}  # nearly all of them


class Wavy(nn.Module):
    """Sines of twelve pixels: a step of full length leads astray, and starts make a difference."""

    def __init__(self) -> None:
        super().__init__()
        draw = generator(37)
        self.first = 10 * torch.randn(64, 12, generator=draw) / 12**0.5
        self.last, self.bias = torch.randn(4, 64, generator=draw), torch.randn(64, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x[:, :, ::4, ::4].flatten(1) @ self.first.T + self.bias) @ self.last.T


def wavy() -> tuple[nn.Module, Tensor, Tensor]:
    net, (_, images, _) = Wavy(), inputs(60)
    return net, images, net(images).argmax(1)


def linear(norm: str, shape: Sequence[int], n: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier of two classes and images far from the box's faces, with their distances (N,) to the
    boundary in ``norm``.
    """
    weight = torch.randn(*shape, generator=generator(31, "w"))
    images = 0.5 + 0.1 * (torch.rand(n, *shape, generator=generator(32)) - 0.5)
    score = images.flatten(1) @ weight.flatten()
    model = LinearClassifier(weight, float(1.0 - score.amin()))
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    return model, images, torch.ones(n, dtype=torch.long), ((score + model.bias) / dual).detach()


def reached(attack: ClassifierAttack, norm: str, shape: Sequence[int], n: int, slack: float) -> Tensor:
    """(N,) bool: whether each image is fooled a little beyond its distance to a linear boundary, and not below it."""
    model, images, labels, distance = linear(norm, shape, n)
    fooled = []
    for i in range(n):
        beyond, below = (ThreatModel(norm=norm, eps=float(distance[i]) * factor) for factor in (slack, 0.99))
        one = slice(i, i + 1)
        fooled.append(bool(attack(model, images[one], labels[one], beyond).success))
        assert not attack(model, images[one], labels[one], below).success.any()
    return torch.tensor(fooled)


def within(name: str, eps: dict[str, float]) -> dict[str, Any]:
    """Norm and radius of a bounded attack, in a norm that it serves; nothing for one without a radius."""
    return {"norm": SERVED[name][0], "eps": eps[SERVED[name][0]]} if name in BOUNDED else {}


@pytest.mark.parametrize("name", NAMES)
def test_its_check_serves_its_own_defaults_and_no_search_within_a_radius_goes_without(name: str) -> None:
    attack = attack_of(name)
    attack.check(attack.threat)
    for norm in SERVED[name] if name in BOUNDED else ():
        with pytest.raises(UserError, match=r"threat\.eps is null"):
            attack.check(ThreatModel(norm=norm, eps=None))


@pytest.mark.parametrize(("shape", "n"), [((3, 4, 4), 2), ((1, 7, 5), 1)])
@pytest.mark.parametrize(("name", "norm"), STRONG_IN_NORM)
def test_on_a_linear_model_the_boundary_is_found_where_it_is(
    name: str, norm: str, shape: Sequence[int], n: int
) -> None:
    assert reached(attack_of(name), norm, shape, n, SLACK.get((name, norm), 1.05)).all()


@pytest.mark.parametrize(("shape", "n"), [((3, 4, 4), 4), ((1, 7, 5), 1)])
@pytest.mark.parametrize(("name", "norm"), MINIMUM_IN_NORM)
def test_on_a_linear_model_the_smallest_norm_is_found(name: str, norm: str, shape: Sequence[int], n: int) -> None:
    model, images, labels, distance = linear(norm, shape, n)
    found = attack_of(name, norm=norm)(model, images, labels)
    assert found.success.all()
    assert (found.norm >= distance * (1 - 1e-5)).all()
    assert (found.norm <= distance * 1.25).all()


class _Slope(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return ctx.factor * slopes[0], None


FAULTS = ("sign flipped", "zero steps", "gradient zeroed")


@dataclass(frozen=True, kw_only=True)
class Broken(WrappedAttack):
    """An attack with one fault; a search that asks for no gradients gets logits that are turned round, or all zero."""

    fault: str

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        factor = -1.0 if self.fault == "sign flipped" else 0.0

        def model(x: Tensor) -> Tensor:
            logits = oracle.model(_Slope.apply(x, factor))  # type: ignore[no-untyped-call]
            return logits * factor if isinstance(self.attack, Square) else logits

        if self.fault == "zero steps":
            return images
        return self.attack.search(LogitOracle(model, oracle.counter), images, labels, sample_ids, threat)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", STRONG)
def test_the_strength_check_notices_a_broken_attack(name: str, fault: str) -> None:
    mutant, norm = Broken(attack_of(name), fault=fault), SERVED[name][0]
    assert not reached(mutant, norm, (3, 4, 4), 3, SLACK.get((name, norm), 1.05)).any()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(norm=st.sampled_from(NORMS), eps=st.sampled_from([0.0, 1e-6, 0.013, 0.3, 1.0]), seed=st.integers(0, 99))
def test_ball_and_box_hold_and_the_input_stays(name: str, norm: str, eps: float, seed: int) -> None:
    net, images, labels = inputs(3, seed)
    images = images.round(decimals=1)  # some pixels stand on the faces of the box
    labels, before = net(images).argmax(1), images.clone()
    if norm not in SERVED[name]:
        return
    found = attack_of(name, norm=norm, eps=eps)(net, images, labels)
    assert torch.equal(images, before)
    assert ((found.images >= 0) & (found.images <= 1)).all()
    if name in BOUNDED:
        assert ball(norm, eps).audit(found.images, images).max() <= eps
    if eps == 0:
        assert not found.success.any()
        assert name not in BOUNDED or torch.equal(found.images, images)


@pytest.mark.parametrize(("name", "weak", "strong"), NESTED)
def test_more_of_it_never_loses_a_sample(name: str, weak: dict[str, Any], strong: dict[str, Any]) -> None:
    net, images, labels = wavy()
    less, more = (attack_of(name, eps=0.04, **given)(net, images, labels).success for given in (weak, strong))
    assert (more >= less).all()
    assert more.sum() > less.sum()


@pytest.mark.parametrize(("name", "key", "values"), GROWING)
def test_more_of_it_is_not_weaker(name: str, key: str, values: Sequence[Any]) -> None:
    net, images, labels = wavy()
    rates = [int(attack_of(name, eps=0.04, **{key: value})(net, images, labels).success.sum()) for value in values]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


@pytest.mark.parametrize(("name", "norm"), STRONG_IN_NORM)
def test_success_grows_with_eps_until_nothing_is_left(name: str, norm: str) -> None:
    """At an unbounded eps nothing may be left: else gradients are masked, or the attack is at fault."""
    net, images, labels = inputs(12)
    far = 1.0 if norm == "linf" else 14.0
    rates = [
        int(attack_of(name, norm=norm, eps=eps)(net, images, labels).success.sum())
        for eps in (0.0, EPS[norm] / 4, EPS[norm] * 2, far)
    ]
    assert rates[0] == 0
    assert rates[:3] == sorted(rates[:3])
    assert rates[1] < rates[2]
    assert rates[3] == 12


def test_the_order_of_strength() -> None:
    net, images, labels = wavy()

    def fooled(name: str, **changed: Any) -> int:
        return int(attack_of(name, eps=0.04, **changed)(net, images, labels).success.sum())

    noise, fgsm, pgd = fooled("pgd", steps=0), fooled("fgsm"), fooled("pgd", steps=20)
    assert noise < fgsm < pgd <= fooled("apgd", steps=20)
    assert noise < fooled("square", queries=100) <= pgd


@pytest.mark.parametrize("name", [name for name in NAMES if not attack_of(name).baseline])
def test_a_planted_point_is_found(name: str) -> None:
    """Only near one corner of the ball is the other class ahead, and the way there is uphill all along."""
    corner = torch.where(torch.rand(3, 4, 4, generator=generator(33)) > 0.5, 1.0, -1.0)
    images, labels, level = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.long), 0.8

    class Planted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = ((x - 0.5) / 0.1 * corner).flatten(1).mean(1)  # 1 at the corner of eps 0.1
            return torch.stack([torch.full_like(near, level), near], dim=1)

    norm = SERVED[name][0]
    attack = attack_of(name, norm=norm, eps=0.1 if norm == "linf" else 0.1 * 48**0.5)
    assert attack(Planted(), images, labels).success.all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_model_or_generators_is_changed(name: str) -> None:
    net = SmallNet().train()
    net.layers[1].eval()
    net.layers[0].weight.requires_grad_(False)
    net.layers[4].bias.grad = gradient = torch.ones(4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flags, wanted = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    _, images, labels = inputs(2)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    attack_of(name)(net, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert net.layers[4].bias.grad is gradient
    assert torch.equal(gradient, torch.ones(4))
    assert net.layers[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled()


class Filled(nn.Module):
    """A network whose rows do not depend on those beside them, as in our wrappers; of a bare one the last bits do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(filled(images))
        return logits[: len(images)]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch_and_a_seed_gives_the_same_bits(name: str) -> None:
    net, images, labels = inputs(6)
    net = Filled(net)
    ids, attack = torch.arange(6) + 40, attack_of(name, **within(name, EPS))
    whole = attack(net, images, labels, sample_ids=ids)
    torch.rand(3)  # global draws have no part in it
    assert _same_bits(whole, attack(net, images, labels, sample_ids=ids))
    if name in OF_BATCHES:
        return
    order = torch.tensor([4, 1, 5])
    part = attack(net, images[order], labels[order], sample_ids=ids[order])
    assert (part.images - whole.images[order]).abs().max() < 1e-5
    assert torch.equal(part.success, whole.success[order])
    assert torch.equal(part.queries, whole.queries[order])


def _same_bits(first: ImageAdversarial, second: ImageAdversarial) -> bool:
    tensors = {key: value for key, value in vars(first).items() if isinstance(value, torch.Tensor)}
    same = all(torch.equal(value, getattr(second, key)) for key, value in tensors.items())
    return same and first.members == second.members


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_already_is_left_alone_and_costs_nothing(name: str) -> None:
    net, images, labels = inputs(4)
    labels[1] = (labels[1] + 1) % 4
    found = attack_of(name)(net, images, labels)
    assert torch.equal(found.images[1], images[1])
    assert bool(found.success[1])
    assert int(found.queries[1]) == int(found.gradients[1]) == 0
    assert attack_of(name).baseline or (found.queries[[0, 2, 3]] > 0).all()  # noise asks no model


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_are_enough(name: str) -> None:
    net, images, _ = inputs(10)
    model = lambda x: net(x)[:, :2]  # noqa: E731
    labels = model(images).argmax(1)
    found = attack_of(name, **within(name, FAR))(model, images, labels)
    assert found.success.any() or attack_of(name).baseline


def test_hyper_parameters_show_and_are_kept() -> None:
    for name in NAMES:
        attack = attack_of(name)
        assert repr(attack.replace(seed=5)) == repr(attack).replace("seed=0", "seed=5")


class Saturated(nn.Module):
    """A network that no pixel moves: its gradient is exactly zero."""

    def forward(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, -1.0])


@pytest.mark.parametrize(("name", "norm"), IN_NORM)
def test_gradients_of_zero_make_no_nan(name: str, norm: str) -> None:
    attack = attack_of(name, norm=norm, eps=1.0 if norm == "linf" else 8.0)
    found = attack(Saturated(), torch.rand(2, 1, 4, 4, generator=generator(55)), torch.zeros(2, dtype=torch.long))
    assert not found.success.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_graph_has_gradients_of_zero(name: str) -> None:
    """As one of a library without gradients has: no error, and every gradient is counted as zero."""
    net, images, labels = inputs(6)
    found = attack_of(name, **within(name, FAR))(lambda x: net(x).detach(), images, labels)
    assert torch.equal(found.zero_gradients, found.gradients)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize(("name", "norm"), [pair for pair in IN_NORM if pair[0] not in OF_BATCHES])
def test_a_factor_in_front_of_the_logits_changes_no_verdict(name: str, norm: str, factor: float) -> None:
    """The losses of torchattacks are its own."""
    attack, (net, images, labels) = attack_of(name, norm=norm, eps=EPS[norm]), inputs(16)
    success = attack(net, images, labels).success
    assert 0 < success.sum() < 16 or attack.baseline
    assert torch.equal(attack(lambda x: factor * net(x), images, labels).success, success)
