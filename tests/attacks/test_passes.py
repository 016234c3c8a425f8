"""The passes that an attack says it will take, beside those that it is then seen to take."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import (
    EOT,
    PGD,
    SGA,
    ClassifierAttack,
    Pairs,
    RetrievalAttack,
    RetrievalAutoAttack,
    RetrievalEOT,
    RetrievalSurrogate,
    SepAttack,
    Surrogate,
    TextAttack,
    ThreatModel,
    TorchAttack,
    WordSubstitution,
)
from robustcli.attacks.core.passes import Passes, Problem

from .conftest import SmallNet, ToyDual, attack_of, family, inputs, make_pairs, names_of, norms_of, whole, words

CLASSES = Problem(classes=4, norm="l2")
PAIRS = Problem(captions=2)


@pytest.mark.parametrize(
    "name", [name for name in names_of(ClassifierAttack) if not issubclass(family(name), TorchAttack)]
)
def test_a_search_of_classes_takes_no_more_passes_than_it_says_and_those_exactly_where_it_says_so(name: str) -> None:
    net, images, labels = inputs(5)
    attack = attack_of(name)
    for norm in norms_of(name):
        said = attack.passes(replace(CLASSES, norm=norm))
        hard = ThreatModel(norm=norm, eps=1e-4)  # which no search fools within, so that none ends early
        result = attack(net, images, labels, hard)
        assert said is not None and int(result.queries.max()) <= said.forward
        assert int(result.gradients.max()) <= said.backward
        if not attack.minimum_norm:  # those end with a success, of which there always is one at some distance
            assert result.queries.float().mean() >= 0.4 * said.forward  # a bound that means something
        if not said.at_most:
            assert set(result.queries.tolist()) == {said.forward} and set(result.gradients.tolist()) == {said.backward}


@pytest.mark.parametrize(
    "settings", [{"early_stop": False}, {"early_stop": False, "keep": "last"}, {"restarts": 3, "early_stop": False}]
)
def test_pgd_without_an_early_stop_is_counted_to_the_pass(settings: dict[str, Any]) -> None:
    net, images, labels = inputs(5)
    attack = PGD(steps=4, eps=0.2, **settings)
    result, said = attack(net, images, labels), attack.passes(CLASSES)
    assert not said.at_most
    assert set(result.queries.tolist()) == {said.forward} and set(result.gradients.tolist()) == {said.backward}


class Noisy(nn.Module):
    """A network whose answers are drawn."""

    randomised = True

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet().eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images + 0.01 * torch.randn_like(images))


@pytest.mark.parametrize("name", ["pgd", "fab", "fmn", "deepfool", "reduced_autoattack", "autoattack"])
def test_draws_and_confirmations_of_a_randomised_model_are_counted(name: str) -> None:
    _, images, labels = inputs(3)
    attack = EOT(attack_of(name), draws=2)
    norm = norms_of(name)[-1]
    result = attack(Noisy(), images, labels, ThreatModel(norm=norm, eps=0.5))
    said = attack.passes(replace(CLASSES, norm=norm, randomised=True))
    assert said is not None
    assert int(result.queries.max()) <= said.forward and int(result.gradients.max()) <= said.backward


def test_of_torchattacks_those_that_take_steps_are_known_and_others_say_that_they_cannot_tell() -> None:
    assert TorchAttack("PGD", {"steps": 7}).passes(CLASSES) == Passes(forward=7, backward=7)
    assert TorchAttack("Square").passes(CLASSES) is None
    net, images, labels = inputs(4)
    result = TorchAttack("PGD", {"steps": 7})(net, images, labels)
    assert set(result.gradients.tolist()) == {7}


def test_a_search_for_transfer_never_stops_early() -> None:
    net, images, labels = inputs(4)
    attack = Surrogate(PGD(steps=5, eps=0.5), SmallNet().eval())
    said = attack.passes(CLASSES)
    assert said == Passes(forward=6, backward=5)
    assert set(attack(net, images, labels).queries.tolist()) == {6}


class Counting:
    """Passes of a dual encoder and of a search of texts, as they happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = self.searched = 0
        encode, maximise = ToyDual.encode_image, TextAttack.maximise

        def encode_image(model: Any, images: Tensor) -> Tensor:
            self.images += len(images)
            return encode(model, images)

        def searching(attack: Any, model: Any, objective: Any, captions: Any, *rest: Any, **more: Any) -> Any:
            self.searched += len(captions)
            return maximise(attack, model, objective, captions, *rest, **more)

        monkeypatch.setattr(ToyDual, "encode_image", encode_image)
        monkeypatch.setattr(TextAttack, "maximise", searching)


@pytest.mark.parametrize("name", names_of(RetrievalAttack))
def test_a_search_of_pairs_takes_no_more_passes_and_searches_than_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, attack = ToyDual().eval(), whole(name)
    pairs: Pairs = make_pairs(model)
    assert isinstance(attack, RetrievalAttack)
    most = max(torch.bincount(pairs.owner).tolist())
    said = attack.passes(Problem(captions=most))
    seen = Counting(monkeypatch)
    attack(model, pairs, None, ThreatModel(eps=1e-4, words=1))
    count, captions = len(pairs.images), len(pairs.captions)
    judging = 2 * count * (most + 1)  # clean features, and the verdict of each variant
    assert said is not None
    assert seen.searched <= said.searches * captions and seen.images <= said.forward * count + judging
    assert seen.searched >= 0.5 * said.searches * captions and seen.images >= 0.3 * said.forward * count


def test_what_wraps_a_search_of_pairs_multiplies_or_passes_on_its_passes() -> None:
    inner = SepAttack(image=PGD(steps=3), text=words())
    alone = inner.passes(PAIRS)
    assert alone == Passes(forward=4, backward=3, searches=1)
    assert RetrievalEOT(inner, draws=5).passes(PAIRS) == Passes(forward=20, backward=15, searches=1)
    assert RetrievalSurrogate(inner, ToyDual()).passes(PAIRS) == alone
    assert SGA(image=PGD(steps=3)).passes(PAIRS) == Passes(forward=20, backward=15)
    assert RetrievalAutoAttack(text=WordSubstitution()).passes(PAIRS) == Passes(searches=2)
