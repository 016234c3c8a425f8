"""Attacks that leave the threat model of the call are caught, whatever their own settings would allow.

Shapes: B images, C channels, H height, W width, M captions.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from robustcli.attacks import (
    EOT,
    FAB,
    PGD,
    CharacterEdits,
    ClassifierAttack,
    ImageOracle,
    LogitOracle,
    Pairs,
    SepAttack,
    Surrogate,
    TextAttack,
    ThreatModel,
    WordSubstitution,
)
from robustcli.attacks.core.oracle import TextEncoder, TextObjective
from robustcli.utils.seeding import generator

from .conftest import ToyDual, inputs


class Unsettled(PGD):
    """It neither stays in the ball nor lets the base bring it back."""

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        return images + 0.05

    def settle(self, found: Tensor, clean: Tensor, threat: ThreatModel) -> Tensor:
        return found


class Outside(FAB):
    """An attack without a radius that leaves the box."""

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        return images + self.eta


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.5)])
def test_images_beyond_the_threat_model_of_the_call_are_a_fault(norm: str, eps: float) -> None:
    """The own eps of the attack would allow them."""
    net, _, _ = inputs(1)
    images = torch.rand(2, 3, 8, 8, generator=generator(61)) / 2
    attack, threat, labels = Unsettled(norm=norm, eps=1.0), ThreatModel(norm=norm, eps=eps), net(images).argmax(1)
    assert attack(net, images, labels).norm.max() > eps
    with pytest.raises(RuntimeError, match=f"but eps is {eps}"):
        attack(net, images, labels, threat)
    with pytest.raises(RuntimeError, match=f"but eps is {eps}"):
        attack.maximise(lambda x, rows: x.flatten(1).sum(1), images, torch.arange(2), threat)
    for wrapped in (EOT(attack, draws=2), Surrogate(attack, net)):
        with pytest.raises(RuntimeError, match=f"but eps is {eps}"):
            wrapped(net, images, labels, threat)


class Misclassified(ClassifierAttack):
    """It reads no gradient and leaves the ball, past the projection of the base class."""

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        return 1 - images

    def settle(self, found: Tensor, clean: Tensor, threat: ThreatModel) -> Tensor:
        return found


def test_a_search_of_logits_beyond_the_threat_model_is_a_fault() -> None:
    net, images, labels = inputs(2)
    with pytest.raises(RuntimeError, match=r"but eps is 0\.04"):
        Misclassified(eps=0.04)(net, images, labels)


def test_images_out_of_the_box_are_a_fault_though_any_change_counts() -> None:
    net, images, labels = inputs(2)
    with pytest.raises(RuntimeError, match="left"):
        Outside()(net, images, labels, ThreatModel(norm="l2", eps=None))


def test_pairs_beyond_the_threat_model_of_the_call_are_a_fault(model: ToyDual, pairs: Pairs) -> None:
    attack = SepAttack(image=Unsettled(eps=1.0))
    for run in (attack, attack.perturb):
        with pytest.raises(RuntimeError, match=r"but eps is 0\.04"):
            run(model, pairs, None, ThreatModel(eps=0.04))


class Wordy(WordSubstitution):
    """Whatever is allowed, it puts in three words."""

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        spent = torch.ones(len(captions), dtype=torch.long)
        return [f"{caption} xx yy zz" for caption in captions], spent, spent


class Lettered(CharacterEdits):
    """Whatever is allowed, it puts in nine characters."""

    edit = Wordy.edit


@pytest.mark.parametrize(
    ("attack", "threat", "says"),
    [
        (Wordy(max_words=9), ThreatModel(words=2), "3 edits, 2 allowed"),
        (Lettered(max_characters=99), ThreatModel(characters=8), "9 edits, 8 allowed"),
    ],
)
def test_captions_beyond_the_threat_model_of_the_call_are_a_fault(
    model: ToyDual, pairs: Pairs, attack: TextAttack, threat: ThreatModel, says: str
) -> None:
    """The own number of edits would allow them."""
    given = (model, lambda f, rows: f.sum(1), pairs.captions, pairs.caption_ids)
    assert attack.maximise(*given)[0].endswith(" xx yy zz")
    with pytest.raises(RuntimeError, match=says):
        attack.maximise(*given, threat)
    for run in (SepAttack(text=attack), SepAttack(text=attack).perturb):
        with pytest.raises(RuntimeError, match=says):
            run(model, pairs, None, threat)
