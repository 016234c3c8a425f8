"""torchattacks by name: every attack runs, and nothing of what it does to the process leaks.

Shapes: B images, Y classes.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import EOT, L2, Linf, Surrogate, ThreatModel, TorchAttack
from robustcli.attacks.image.torchattack import names
from robustcli.builders.attacks import build_attack, build_threat
from robustcli.config.compose import compose
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed, generator

from ..conftest import LinearClassifier, SmallNet

_LINF = """
    FGSM BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD APGD APGDT DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM VMIFGSM
    VNIFGSM SPSA PIFGSM PIFGSMPP FAB AutoAttack Square
"""
_OTHERS = "PGDL2 PGDRSL2 GN CW DeepFool EADEN EADL1 SparseFool OnePixel Pixle JSMA VANILA"
LINF, L2_BOUNDED, ALL = set(_LINF.split()), {"PGDL2", "PGDRSL2"}, [*_LINF.split(), *_OTHERS.split()]
QUICK: Mapping[str, Mapping[str, Any]] = {  # those that take seconds with their defaults
    "AutoAttack": {"version": "rand"},
    "EADEN": {"binary_search_steps": 2, "max_iterations": 20, "initial_const": 10.0},
    "EADL1": {"binary_search_steps": 2, "max_iterations": 20, "initial_const": 10.0},
    "SPSA": {"nb_sample": 4, "max_batch_size": 4},
    "Square": {"n_queries": 20},
}


class Probed(SmallNet):
    """Refuses pixels out of [0,1], as our own models do."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.min() >= 0 and images.max() <= 1
        return super().forward(images)


@pytest.fixture
def images() -> Tensor:
    return 0.02 + 0.96 * torch.rand(3, 3, 8, 8, generator=generator(21))


def _state(model: nn.Module) -> list[Any]:
    numbers = np.random.get_state()
    return [
        [part.training for part in model.modules()],
        [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        [value.tolist() for value in model.state_dict().values()],
        torch.get_rng_state().tolist(),
        (numbers[0], numbers[1].tolist(), *numbers[2:]),  # type: ignore[union-attr, index]
        random.getstate(),
        (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
        torch.are_deterministic_algorithms_enabled(),
        sys.stdout,
    ]


def test_all_attacks_of_the_release_are_known() -> None:
    if version("torchattacks") != "3.5.1":
        pytest.skip("the list is that of torchattacks 3.5.1")
    assert sorted(names()) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_attack_runs_within_its_ball_and_leaves_no_trace(
    name: str, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Probed().train()
    labels, clean = model.eval()(images).argmax(1), images.clone()
    model.train()
    np.random.seed(5)
    before = _state(model)
    attack = TorchAttack(name, QUICK.get(name, {}))
    with torch.no_grad():
        found = attack(model, images, labels)
    assert capsys.readouterr().out == ""
    with torch.no_grad():
        again = attack(model, images, labels)
    after = _state(model)
    after[6] = before[6]
    assert before == after
    assert torch.equal(images, clean)
    assert torch.equal(found.images, again.images) and torch.equal(found.success, again.success)
    assert torch.equal(found.success, model.eval()(found.images).argmax(1) != labels)
    assert found.images.isfinite().all() and found.images.min() >= 0 and found.images.max() <= 1
    expected = Linf if name in LINF else L2 if name in L2_BOUNDED else None
    assert attack.minimum_norm == (attack.threat.eps is None) == (expected is None)
    assert expected is None or type(attack.threat.ball) is expected
    if name != "VANILA":
        assert found.queries.sum() + found.gradients.sum() > 0 or name == "GN"
        assert not torch.equal(found.images, images) or name in ("FAB", "APGD", "APGDT", "AutoAttack", "Square")


@pytest.mark.parametrize("name", ["PGD", "GN", "OnePixel", "Pixle"])
def test_draws_follow_the_seed_and_the_ids_of_the_batch(name: str, images: Tensor) -> None:
    net = SmallNet().eval()
    params = {"steps": 1} if name in ("PGD", "OnePixel") else {}
    labels, ids = net(images).argmax(1), torch.tensor([4, 8, 6])

    def found(ids: Tensor, seed: int = 0) -> Tensor:
        return TorchAttack(name, params, seed=seed)(net, images, labels, sample_ids=ids).images

    torch.manual_seed(1)
    first = found(ids)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, found(ids))
    assert not torch.equal(first, found(ids, 1)) and not torch.equal(first, found(ids + 1))


def test_the_result_is_that_of_torchattacks_itself(images: Tensor) -> None:
    import torchattacks

    net = SmallNet().eval()
    labels, ids = net(images).argmax(1), torch.arange(3)
    for name, params, radius, norm in (
        ("PGD", {"steps": 3}, {"eps": 0.02}, "linf"),
        ("PGDL2", {"steps": 3}, {"eps": 0.1}, "l2"),
        ("CW", {"steps": 5}, {}, "l2"),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(0, "torchattacks", name, *ids.tolist()) % 2**32)
            theirs = getattr(torchattacks, name)(net, **params, **radius)(images, labels).detach()
        threat = ThreatModel(norm=norm, eps=radius.get("eps"))
        ours = TorchAttack(name, params)(net, images, labels, threat, sample_ids=ids)
        assert torch.allclose(ours.images, theirs, atol=1e-6)


def test_costs_add_up_to_those_of_the_batch(images: Tensor) -> None:
    net = SmallNet().eval()
    labels = net(images).argmax(1)
    found = TorchAttack("PGD", {"steps": 7})(net, images, labels)
    assert found.queries.tolist() == found.gradients.tolist() == [7, 7, 7]
    assert found.zero_gradients.sum() == 0
    flat = TorchAttack("PGD", {"steps": 7})(lambda x: net(x.detach() + 0 * x), images, labels)
    assert flat.zero_gradients.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("name", "settings", "threat"),
    [
        ("PGD", {"eps": "8/255"}, ThreatModel(eps=8 / 255)),
        ("PGD", {}, ThreatModel(eps=8 / 255)),
        ("PGDL2", {"eps": 0.5}, ThreatModel(norm="l2", eps=0.5)),
        ("PGDL2", {}, ThreatModel(norm="l2", eps=1.0)),
        ("APGD", {"norm": "l2", "eps": 0.5}, ThreatModel(norm="l2", eps=0.5)),
        ("APGD", {}, ThreatModel(eps=8 / 255)),
        ("PIFGSM", {"eps": 0.1}, ThreatModel(eps=0.1)),
        ("Pixle", {}, ThreatModel(norm="l2", eps=None)),
        ("Pixle", {"norm": "linf"}, ThreatModel(norm="linf", eps=None)),
        ("CW", {}, ThreatModel(norm="l2", eps=None)),
    ],
)
def test_norm_and_eps_are_those_that_are_given_or_those_of_the_class(
    name: str, settings: dict[str, Any], threat: ThreatModel, images: Tensor
) -> None:
    attack = TorchAttack(name, **settings)
    assert attack.norm == threat.norm and attack.threat == threat
    assert attack.replace(seed=3).threat == threat and name in repr(attack)
    net = SmallNet().eval()
    labels = net(images).argmax(1)
    found = attack(net, images, labels)
    distance = threat.ball.distance(found.images, images)
    assert torch.equal(found.norm, distance.masked_fill(~found.success, torch.inf) if threat.eps is None else distance)
    assert (found.norm > 0).any()
    given = TorchAttack(name)(net, images, labels, threat)  # the same with the call, whatever its own are
    assert torch.equal(given.images, found.images) and torch.equal(given.norm, found.norm)


def test_a_radius_says_which_smallest_changes_count(images: Tensor) -> None:
    net = SmallNet().eval()
    labels, attack = net(images).argmax(1), TorchAttack("DeepFool", {"steps": 9})
    free = attack(net, images, labels)
    assert free.success.all()
    radius = float(free.norm.median()) * 1.001
    within = attack(net, images, labels, ThreatModel(norm="l2", eps=radius))
    assert torch.equal(within.images, free.images) and torch.equal(within.norm, free.norm)
    assert torch.equal(within.success, free.norm <= radius) and 0 < within.success.sum() < 3


@pytest.mark.parametrize(
    ("name", "threat", "says"),
    [
        ("PGDL2", ThreatModel(), r"threat\.norm is 'linf', but PGDL2 .* keeps a ball in l2: choose threat\.norm=l2"),
        ("PGD", ThreatModel(norm="l2"), r"threat\.norm is 'l2', but PGD .* keeps a ball in linf"),
        ("PGD", ThreatModel(eps=None), r"threat\.eps is null, but PGD of torchattacks needs a radius"),
    ],
)
def test_a_threat_model_that_the_class_cannot_serve_is_refused(
    name: str, threat: ThreatModel, says: str, images: Tensor
) -> None:
    net = SmallNet().eval()
    with pytest.raises(UserError, match=says):
        TorchAttack(name).check(threat)
    with pytest.raises(UserError, match=says):
        TorchAttack(name)(net, images, net(images).argmax(1), threat)
    if threat.eps is not None:
        with pytest.raises(UserError, match=says):
            TorchAttack(name, norm=threat.norm, eps=threat.eps)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("PDG", {}, "did you mean 'PGD'.*choices: VANILA, GN, FGSM"),
        ("pgdl2", {}, "did you mean 'PGDL2'"),
        ("MultiAttack", {}, "made of other attacks"),
        ("LGV", {}, "made of other attacks or models"),
        ("PGD", {"step": 3}, "attack.params.step is no parameter of PGD: did you mean 'steps'.*choices: alpha, steps"),
        ("PGD", {"eps": "4/255"}, r"attack\.params\.eps is 4/255, but .* threat model: set threat\.eps=4/255 instead"),
        ("PIFGSM", {"max_epsilon": 16}, r"attack\.params\.max_epsilon is 16.* set threat\.eps=16 instead"),
        ("APGD", {"norm": "L2"}, r"attack\.params\.norm is L2, but .* set threat\.norm=l2 instead"),
        ("PGD", {"alpha": "x/255"}, "attack.params.alpha is 'x/255': expected a number or a fraction"),
        ("Pixle", {"restarts": -1}, "attack.params of Pixle are refused by torchattacks"),
        ("FAB", {"norm": "L1"}, r"attack\.params\.norm is L1, but .* set threat\.norm=l1 instead"),
        ("VANILA", {"eps": 1}, "none at all"),
    ],
)
def test_mistakes_are_met_before_any_work(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TorchAttack(name, params)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PGD", {"eps": 4}, r"threat\.eps is 4, but pixels are in \[0, 1\]: did you mean 4/255"),
        ("PIFGSM", {"eps": 16}, r"threat\.eps is 16.*16/255"),
        ("FAB", {"norm": "l1"}, r"threat\.norm is 'l1': choose linf or l2"),
    ],
)
def test_an_impossible_threat_model_is_met_before_any_work(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TorchAttack(name, **settings)


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_grey_images_are_refused_by_what_blurs_three_channels(name: str) -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), torch.rand(2, 1, 16, 16)
    with pytest.raises(UserError, match=rf"{name} needs images of three channels, but they have 1: choose another"):
        TorchAttack(name)(model, images, model(images).argmax(1))


def test_an_attack_that_needs_more_classes_says_so(images: Tensor) -> None:
    model = LinearClassifier(torch.ones(3, 8, 8), -96.0)
    with pytest.raises(UserError, match="APGDT needs 4 classes or more, but the model has 2"):
        TorchAttack("APGDT")(model, images, model(images).argmax(1))


def test_the_number_of_classes_is_the_model_s(images: Tensor) -> None:
    net = SmallNet().eval()  # four classes; the class's own default is ten
    assert TorchAttack("APGDT", eps=0.1)(net, images, net(images).argmax(1)).success.all()


def test_a_nan_gives_the_clean_image(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchattacks

    def forward(self: object, images: Tensor, labels: Tensor) -> Tensor:
        broken = (images + 0.01).clamp(0, 1)
        broken[0, 0, 0, 0] = torch.nan
        return broken

    monkeypatch.setattr(torchattacks.FGSM, "forward", forward)
    net = SmallNet().eval()
    found = TorchAttack("FGSM")(net, images, net(images).argmax(1))
    assert torch.equal(found.images[0], images[0]) and not torch.equal(found.images[1], images[1])


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An attack that does all that an attack should not do."""
    import torchattacks

    def forward(self: Any, images: Tensor, labels: Tensor) -> Tensor:
        print("here I am")
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.model.train()
        for weight in self.model.parameters():
            weight.requires_grad_(True)
        return images + 0.01 * (self.model(images).sum() * 0 + 1)

    monkeypatch.setattr(torchattacks.FGSM, "forward", forward)
    yield


@pytest.mark.usefixtures("loud")
def test_the_isolation_holds_an_attack_that_misbehaves(images: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    modes: list[bool] = []
    model = SmallNet().eval()
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    before = _state(model)
    found = TorchAttack("FGSM")(model, images, model(images).argmax(1))
    assert _state(model) == before and not any(modes)
    assert capsys.readouterr().out == "" and not torch.equal(found.images, images)


def test_it_goes_into_eot_and_onto_a_surrogate(images: Tensor) -> None:
    net = SmallNet().eval()
    labels, attack = net(images).argmax(1), TorchAttack("PGD", eps=0.1)
    plain = attack(net, images, labels)
    averaged, moved = EOT(attack, draws=2)(net, images, labels), Surrogate(attack, net)(net, images, labels)
    assert torch.allclose(plain.images, averaged.images, atol=1e-6) and torch.equal(plain.images, moved.images)
    assert averaged.queries.sum() == 2 * plain.queries.sum()


def test_any_parameter_can_be_given_on_the_command_line() -> None:
    overrides = ["dataset=digits", "model=digits", "attack=torchattacks", "attack.name=PGDL2", "attack.params.steps=3"]
    composed = compose("attack", [*overrides, "threat.norm=l2", "threat.eps=1/2"])
    threat = build_threat(composed.threat)
    built = build_attack(composed.attack, threat, captions=False, candidates=None, seed=7, key="attack")
    assert isinstance(built.attack, TorchAttack) and built.attack.seed == 7
    assert built.attack.params == {"steps": 3} and threat.ball == L2(0.5)


def test_torchattacks_is_imported_only_when_it_is_asked_for() -> None:
    import subprocess

    code = "import sys, robustcli.attacks; sys.exit('torchattacks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
