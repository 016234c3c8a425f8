"""A threat model that a search cannot serve is refused before any work, in a sentence that says what would fit."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from robustcli.attacks import (
    CW,
    EOT,
    FAB,
    PGD,
    Attack,
    AutoAttack,
    CharacterEdits,
    ClassifierAttack,
    ImageAttack,
    LogitOracle,
    Pairs,
    ReducedAutoAttack,
    SepAttack,
    SequentialAttack,
    Surrogate,
    TextAttack,
    ThreatModel,
    TorchAttack,
)
from robustcli.utils.errors import UserError

from .conftest import ToyDual, attack_of, inputs, names_of, untouched, words


@pytest.mark.parametrize(
    ("attack", "threat", "says"),
    [
        (CW(), ThreatModel(), r"threat\.norm is 'linf', but Carlini and Wagner's attack is for l2"),
        (ReducedAutoAttack(), ThreatModel(), r"threat\.norm is 'linf', but the reduced AutoAttack is for l2"),
        (PGD(), ThreatModel(eps=None), r"threat\.eps is null, but PGD needs a radius: give one such as threat\.eps"),
        (PGD(eps=None), None, r"threat\.eps is null, but PGD needs a radius"),
        (AutoAttack(), ThreatModel(eps=None), r"threat\.eps is null, but APGD needs a radius"),
        (TorchAttack("PGDL2"), ThreatModel(), r"threat\.norm is 'linf', but PGDL2 .* choose threat\.norm=l2"),
        (EOT(CW()), ThreatModel(), r"threat\.norm is 'linf'"),
        (Surrogate(PGD(), untouched), ThreatModel(eps=None), r"threat\.eps is null"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_search_of_images_refuses_what_it_cannot_serve_before_the_model_is_asked(
    attack: ClassifierAttack, threat: ThreatModel | None, says: str
) -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(UserError, match=says):
        attack.check(threat or attack.threat)
    with pytest.raises(UserError, match=says):
        attack(untouched, images, torch.zeros(1, dtype=torch.long), threat)
    if isinstance(attack, ImageAttack):
        with pytest.raises(UserError, match=says):
            attack.maximise(lambda x, rows: untouched(x), images, torch.arange(1), threat)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CW(norm="linf"), r"threat\.norm is 'linf'"),
        (lambda: ReducedAutoAttack(norm="linf", eps=0.1), r"threat\.norm is 'linf'"),
        (lambda: TorchAttack("PGDL2", norm="linf"), r"threat\.norm is 'linf', but PGDL2"),
        (lambda: TorchAttack("PGD", {"eps": 0.1}), r"attack\.params\.eps is 0\.1, .* set threat\.eps=0\.1 instead"),
        (lambda: PGD(norm="l1"), r"threat\.norm is 'l1'"),
        (lambda: FAB(norm="l1"), r"threat\.norm is 'l1'"),
    ],
)
def test_an_attack_that_cannot_serve_its_own_threat_model_is_not_built(make: Callable[[], Attack], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


@dataclass(frozen=True, kw_only=True)
class Unmoved(ClassifierAttack):
    """The weakest search within a radius."""

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        return images


class Forgetful(Unmoved):
    """A check of its own, which leaves out that of the base class."""

    def check(self, threat: ThreatModel) -> None:
        return None


@pytest.mark.parametrize("attack", [Unmoved(), Forgetful(), EOT(Forgetful())], ids=lambda attack: repr(attack)[:14])
def test_a_search_within_a_radius_never_runs_without_one(attack: ClassifierAttack) -> None:
    """Else nothing would be moved, nothing audited, and all of it called robust."""
    images = torch.full((1, 3, 8, 8), 0.5)
    with pytest.raises(UserError, match=r"threat\.eps is null, but \w+ needs a radius"):
        attack(untouched, images, torch.zeros(1, dtype=torch.long), ThreatModel(eps=None))


@pytest.mark.parametrize(
    ("attack", "threat", "says"),
    [
        (CharacterEdits(), ThreatModel(words=1), "CharacterEdits edits characters, but the threat model counts words"),
        (words(), ThreatModel(characters=2), "WordSubstitution edits words, but the threat model counts characters"),
    ],
)
def test_a_search_of_captions_refuses_another_unit(
    model: ToyDual, pairs: Pairs, attack: TextAttack, threat: ThreatModel, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        attack.maximise(model, lambda f, rows: f.sum(1), pairs.captions, pairs.caption_ids, threat)
    for kind in (SepAttack, SequentialAttack):
        for run in ("__call__", "perturb", "variants"):
            with pytest.raises(UserError, match=says):
                getattr(kind(image=PGD(), text=attack), run)(model, pairs, None, threat)


def test_a_search_of_pairs_refuses_what_its_parts_cannot_serve(model: ToyDual, pairs: Pairs) -> None:
    with pytest.raises(UserError, match=r"threat\.eps is null, but PGD needs a radius"):
        SepAttack(image=PGD(), text=words())(model, pairs, threat=ThreatModel(eps=None, words=1))
    SepAttack(text=words())(model, pairs, threat=ThreatModel(eps=None, words=1))  # it leaves images alone


@pytest.mark.parametrize("name", names_of(ClassifierAttack))
def test_labels_are_whole_numbers_of_any_type_one_an_image(name: str) -> None:
    model, images, labels = inputs(4)
    attack = attack_of(name)
    found = [attack(model, images, labels.to(dtype)).images for dtype in (torch.int64, torch.int32, torch.uint8)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for bad in (labels[:, None], labels.float(), labels > 0, torch.eye(10)[labels]):
        with pytest.raises(ValueError, match=r"expected whole numbers \(B,\)"):
            attack(model, images, bad)
