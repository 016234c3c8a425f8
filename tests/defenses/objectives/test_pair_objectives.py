"""Objectives of dual encoders beside the contrastive one: each is its formula, to the last weight.

Shapes: B pairs.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import SequentialAttack, ThreatModel
from robustcli.data import Scenes
from robustcli.data.sampling import PairBatch, PairSampler
from robustcli.defenses import FARE, LEAF, MATTrades, MMCoA, PairObjective
from robustcli.models import DualEncoder
from robustcli.utils.errors import UserError

THREAT = ThreatModel(norm="linf", eps="8/255", words=1)


@pytest.fixture
def batch(scenes: Scenes) -> PairBatch:
    return PairSampler(scenes, batch_size=8, seed=0)(0)


class Watched:
    """An attack whose adversarial images and captions are kept."""

    def __init__(self, attack: SequentialAttack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attack, self.images, self.captions = attack, Tensor(), tuple[str, ...]()
        for side, name in (("image", "images"), ("text", "captions")):
            kind = type(getattr(attack, side))
            original = kind.maximise

            def watched(*given: Any, name: str = name, original: Any = original, **rest: Any) -> Any:
                found = original(*given, **rest)
                setattr(self, name, found)
                return found

            monkeypatch.setattr(kind, "maximise", watched)


@pytest.fixture
def watched(mat_attack: SequentialAttack, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(mat_attack, monkeypatch)


def other(model: DualEncoder) -> DualEncoder:
    """The model some steps before."""
    earlier = copy.deepcopy(model).eval()
    with torch.no_grad():
        for weight in earlier.network.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return earlier


def slopes(model: DualEncoder, loss: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in model.network.parameters()]


def equal(model: DualEncoder, loss: Tensor, formula: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(loss, formula, rtol=1e-5, atol=1e-6)
    for found, expected in zip(slopes(model, loss), slopes(model, formula), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def loss_of(
    objective: PairObjective, model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch, **rest: Any
) -> Tensor:
    images = scenes.images(batch.image_ids)
    return objective.loss(model.train(), watched.attack, THREAT, images, batch, seed=1, **rest)


def cross_entropies(model: DualEncoder, images: Tensor, captions: Any, batch: PairBatch) -> Tensor:
    """Both directions, added; other true pairs are left out of the sums."""
    text = model.encode_text(model.tokenize(captions))
    logits = model.logit_scale * model.encode_image(images) @ text.T
    others = batch.matches & ~torch.eye(len(logits), dtype=torch.bool)
    rows = torch.arange(len(logits))
    directions = (logits.masked_fill(others, -torch.inf), logits.T.masked_fill(others.T, -torch.inf))
    return F.cross_entropy(directions[0], rows) + F.cross_entropy(directions[1], rows)


def test_fare_is_the_distance_to_the_original_features(
    small_model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch
) -> None:
    reference, images = other(small_model), scenes.images(batch.image_ids)
    loss = loss_of(FARE(), small_model, watched, scenes, batch, reference=reference)
    original = reference.encode_image(images, unit=False).detach()

    def formula(x: Tensor) -> Tensor:
        return (small_model.encode_image(x, unit=False) - original).pow(2).sum(1).mean()

    assert formula(watched.images) > formula(images), "the images were attacked"
    equal(small_model, loss, formula(watched.images))
    text = [weight for name, weight in small_model.network.named_parameters() if name.startswith("text.")]
    assert all(weight.grad is None for weight in text)


def test_leaf_is_the_distance_to_the_original_features(
    small_model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch
) -> None:
    reference = other(small_model)
    loss = loss_of(LEAF(), small_model, watched, scenes, batch, reference=reference)
    original = reference.encode_text(reference.tokenize(batch.captions), unit=False).detach()

    def formula(captions: Any) -> Tensor:
        return (small_model.encode_text(small_model.tokenize(captions), unit=False) - original).pow(2).sum(1).mean()

    assert watched.captions != batch.captions
    equal(small_model, loss, formula(watched.captions))
    visual = [weight for name, weight in small_model.network.named_parameters() if name.startswith("visual.")]
    assert all(weight.grad is None for weight in visual)


def test_mmcoa_never_pairs_what_is_attacked_on_both_sides(
    small_model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch
) -> None:
    objective = MMCoA(text_weight=0.3, image_weight=0.7)
    loss = loss_of(objective, small_model, watched, scenes, batch)
    images = scenes.images(batch.image_ids)
    of_text = cross_entropies(small_model, images, watched.captions, batch)
    of_images = cross_entropies(small_model, watched.images, batch.captions, batch)
    assert (
        of_images > cross_entropies(small_model, images, batch.captions, batch) and watched.captions != batch.captions
    )
    equal(small_model, loss, 0.3 * of_text + 0.7 * of_images)


def test_mat_trades_is_the_clean_loss_and_the_divergence(
    small_model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch
) -> None:
    loss = loss_of(MATTrades(beta=2.0), small_model, watched, scenes, batch)
    images = scenes.images(batch.image_ids)

    def logits(x: Tensor, captions: Any) -> Tensor:
        text = small_model.encode_text(small_model.tokenize(captions))
        return small_model.logit_scale * small_model.encode_image(x) @ text.T

    clean, attacked = logits(images, batch.captions), logits(watched.images, watched.captions)
    halves = [
        (p.softmax(1) * (p.softmax(1).log() - q.softmax(1).log())).sum(1).mean()
        for p, q in ((clean, attacked), (clean.T, attacked.T))
    ]
    divergence = torch.stack(halves).mean()
    assert divergence > 0
    equal(small_model, loss, cross_entropies(small_model, images, batch.captions, batch) / 2 + 2 * divergence)


def test_no_divergence_is_no_loss(small_model: DualEncoder, watched: Watched, scenes: Scenes, batch: PairBatch) -> None:
    loss = loss_of(MATTrades(beta=0), small_model, watched, scenes, batch)
    images = scenes.images(batch.image_ids)
    torch.testing.assert_close(loss, cross_entropies(small_model, images, batch.captions, batch) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMCoA(text_weight=-1), r"defense\.text_weight is -1: expected a finite number that is not negative"),
        (lambda: MMCoA(image_weight=float("nan")), r"defense\.image_weight is nan"),
        (lambda: MATTrades(beta=-0.1), r"defense\.beta is -0\.1: expected a finite number that is not negative"),
    ],
)
def test_weights_below_zero_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "attack", "threat"),
    [
        (FARE(), "attack=pgd", "threat=image"),
        (LEAF(), "attack=words or attack=characters", "threat=text or threat=characters"),
        (MMCoA(), "attack=mat", "threat=both"),
    ],
)
def test_what_an_objective_lacks_is_advised_for_its_sides_alone(
    objective: PairObjective, attack: str, threat: str, watched: Watched
) -> None:
    with pytest.raises(UserError, match=f"choose {attack}\\.$"):
        objective.check(None, ThreatModel(eps="4/255", words=1))
    still = ThreatModel(eps=0) if objective.sides == ("text",) else ThreatModel(eps=0, words=1)
    with pytest.raises(UserError, match=f"choose {threat}\\.$"):
        objective.check(watched.attack, still)
