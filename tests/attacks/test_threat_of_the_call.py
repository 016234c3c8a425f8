"""Threat model given with the call: one attack serves every threat model within its scope.

Shapes: B images, C channels, H height, W width, M captions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.attacks import (
    EOT,
    FAB,
    PGD,
    ClassifierAttack,
    ImageAttack,
    Pairs,
    RetrievalAttack,
    SepAttack,
    Surrogate,
    TextAttack,
    ThreatModel,
)
from robustcli.utils.errors import UserError

from .conftest import (
    SmallNet,
    ToyDual,
    attack_of,
    inputs,
    make_pairs,
    names_of,
    norms_of,
    text_attack,
    untouched,
    whole,
    words,
)

CLASSIFIER, IMAGE, TEXT, RETRIEVAL = (
    names_of(kind) for kind in (ClassifierAttack, ImageAttack, TextAttack, RetrievalAttack)
)
# A curve as one asks for it; the last one is that of attacks that look for the smallest change.
EPS = {"linf": (0.0, "2/255", 0.02, 0.3, None), "l2": (0.0, 0.05, "1/5", 2, None)}
# Searches that read the threat model in further places than the defaults of their row.
SEARCHES: Sequence[tuple[str, dict[str, Any]]] = (
    ("pgd", {"restarts": 2, "steps": 3}),
    ("pgd", {"alpha": 0.01, "momentum": 0.9, "random_start": False, "keep": "last"}),
    ("apgd", {"targets": 3, "restarts": 2, "steps": 4}),
    ("fab", {"targets": 2, "restarts": 3, "steps": 4}),
    ("autoattack", {"version": "plus", "steps": 3, "queries": 10}),
    ("autoattack", {"version": "rand", "steps": 2}),
)


def same(first: Any, second: Any) -> bool:
    """True if two results are equal in every field, bit for bit."""
    return all(
        torch.equal(value, getattr(second, name)) if isinstance(value, Tensor) else value == getattr(second, name)
        for name, value in vars(first).items()
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in CLASSIFIER), *SEARCHES])
def test_one_attack_on_classifiers_serves_a_curve_over_eps(name: str, settings: dict[str, Any], norm: str) -> None:
    net, images, labels = inputs(4)
    attack, served = attack_of(name, seed=2, **settings), 0
    for eps in EPS[norm]:
        threat = ThreatModel(norm=norm, eps=eps)
        try:
            attack.check(threat)
        except UserError:
            continue
        built = attack.replace(norm=norm, eps=eps)
        assert built.threat == threat
        assert same(attack(net, images, labels, threat), built(net, images, labels))
        served += 1
    assert served == (4 + attack.minimum_norm if norm in norms_of(name) else 0)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("name", TEXT)
def test_one_attack_on_captions_serves_every_number_of_edits(model: ToyDual, name: str, n: int) -> None:
    pairs, unit = make_pairs(model, (2,) * 3), text_attack(name).unit
    threat: Any = ThreatModel(eps=0, **{unit: n})  # type: ignore[arg-type]
    built = text_attack(name, n)
    assert built.threat == threat
    found = SepAttack(text=text_attack(name))(model, pairs, threat=threat)
    assert same(found, SepAttack(text=built)(model, pairs))
    assert int(found.edits.max()) <= n and (n == 0 or found.edits.any())


@pytest.mark.parametrize(("norm", "eps", "n"), [("linf", "2/255", 1), ("l2", 0.2, 2), ("linf", 0.0, 1), ("l2", 0.1, 0)])
@pytest.mark.parametrize("name", RETRIEVAL)
def test_one_attack_on_pairs_serves_every_threat_model(
    model: ToyDual, name: str, norm: str, eps: float | str, n: int
) -> None:
    pairs, threat = make_pairs(model, (2,) * 4), ThreatModel(norm=norm, eps=eps, words=n)
    attack = attack_of(name, image=PGD(steps=2), text=words())
    built = attack_of(name, image=PGD(norm=norm, eps=eps, steps=2), text=words(max_words=n))
    assert built.threat == threat
    assert same(attack(model, pairs, None, threat), built(model, pairs))
    given, own = attack.perturb(model, pairs, None, threat), built.perturb(model, pairs)
    assert torch.equal(given[0], own[0]) and given[1] == own[1]


@pytest.mark.parametrize("wrap", [lambda attack: EOT(attack, draws=2), lambda attack: Surrogate(attack, SmallNet())])
@pytest.mark.parametrize("build", [PGD, FAB])
def test_a_wrapper_hands_the_threat_model_on(
    wrap: Callable[[ClassifierAttack], ClassifierAttack], build: Callable[..., ClassifierAttack]
) -> None:
    net, images, labels = inputs(6)
    threat, attack = ThreatModel(norm="l2", eps=0.1), build(steps=4)
    own = wrap(attack.replace(norm="l2", eps=0.1))
    assert own.threat == threat and own.minimum_norm == attack.minimum_norm
    assert same(wrap(attack)(net, images, labels, threat), own(net, images, labels))


@pytest.mark.parametrize("name", CLASSIFIER)
def test_with_eps_0_the_images_come_back_and_nothing_is_spent(name: str) -> None:
    net, images, labels = inputs(3)
    labels[1] = (labels[1] + 1) % 4
    attack = attack_of(name)
    found = attack(net, images, labels, attack.threat.at(0))
    assert torch.equal(found.images, images)
    assert found.success.tolist() == [False, True, False]
    assert found.norm[1] == 0 and int(found.queries.sum()) == 0
    if name in IMAGE:
        kept = attack.maximise(lambda x, rows: untouched(x), images, torch.arange(3), ThreatModel(eps=0))
        assert torch.equal(kept, images) and kept is not images


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_side_that_may_not_change_does_not(model: ToyDual, pairs: Pairs, name: str) -> None:
    attack = whole(name)
    assert isinstance(attack, RetrievalAttack)
    images, captions = attack.perturb(model, pairs, threat=ThreatModel(eps="8/255", words=0))
    assert captions == pairs.captions and not torch.equal(images, pairs.images)
    images, captions = attack.perturb(model, pairs, threat=ThreatModel(eps=0, words=1))
    assert captions != pairs.captions and torch.equal(images, pairs.images)


@pytest.mark.parametrize("name", TEXT)
def test_without_words_or_characters_captions_stay_and_no_model_is_asked(name: str, pairs: Pairs) -> None:
    attack, captions = text_attack(name), pairs.captions
    unasked: Any = None
    assert attack.maximise(unasked, unasked, captions, pairs.caption_ids, ThreatModel()) == captions
