"""Negatives over the micro-batches of a step, against one large batch computed plainly."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.config.schemas import TrainerSettings
from robustcli.data import Scenes
from robustcli.data.sampling import PairBatch
from robustcli.defenses import FARE, MATTrades, MMCoA, Objective, PairObjective, info_nce
from robustcli.defenses.objectives.pairs import View
from robustcli.training.group import Group
from robustcli.training.negatives import StepNegatives
from robustcli.training.tasks import PairTask
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import UserError

from .gloo import MAT, SETTINGS, outcome, pairs

K, B, SIZE = 3, 4, 5


class Towers(nn.Module):
    """A dual encoder in float64 of one layer a tower; a caption is its number."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.image = nn.Parameter(torch.randn(SIZE, SIZE, generator=source, dtype=torch.double))
        self.text = nn.Parameter(torch.randn(K * B, SIZE, generator=source, dtype=torch.double))
        self.learnt = nn.Parameter(torch.tensor(2.0, dtype=torch.double))

    @property
    def logit_scale(self) -> Tensor:
        return self.learnt.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(torch.tanh(images.flatten(1) @ self.image), dim=1)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([int(caption) for caption in captions])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.text[tokens], dim=1)


class Given:
    """A task whose inner attacks have been made: the second view is that of other images."""

    def __init__(self, objective: PairObjective, weights: Sequence[float]) -> None:
        self.objective, self.weights = objective, weights
        self.relation = torch.rand(K * B, K * B, generator=torch.Generator().manual_seed(2)) < 0.2
        self.data = SimpleNamespace(relevance=lambda images, captions: self.relation[images][:, captions])

    def views(self, model: Any, batch: PairBatch, images: Tensor, *, seed: int) -> tuple[View, ...]:
        return tuple(View(images + place, batch.captions, weight) for place, weight in enumerate(self.weights))


def loaded() -> list[tuple[PairBatch, Tensor]]:
    images = torch.rand(K * B, SIZE, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    orders = torch.randperm(K * B, generator=torch.Generator().manual_seed(4)).split(B)
    return [
        (PairBatch(rows, rows, tuple(str(row) for row in rows.tolist()), torch.empty(0)), images[rows])
        for rows in map(torch.Tensor, orders)
        for rows in [rows.long()]
    ]


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def plain(task: Given, objective: Any, *, detached: bool = False) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one batch of all pairs, written out.

    Args:
        detached: without those of the features that are another micro-batch's.
    """
    model, batches = Towers(), loaded()
    images = torch.cat([images for _, images in batches])
    tokens = torch.cat([batch.image_ids for batch, _ in batches])
    matches = task.relation[tokens][:, tokens] | torch.eye(K * B, dtype=torch.bool)
    total = torch.zeros((), dtype=torch.double)
    for place, weight in enumerate(task.weights):
        image, text = model.encode_image(images + place), model.encode_text(tokens)
        if not detached:
            loss = info_nce(
                image,
                text,
                model.logit_scale,
                matches,
                positives=objective.positives,
                directions=getattr(objective, "directions", "both"),
            )
            total = total + weight * loss.mean()
            continue
        for rows in torch.arange(K * B).split(B):
            own = torch.zeros(K * B, 1, dtype=torch.bool)
            own[rows] = True
            mixed = [torch.where(own, each, each.detach()) for each in (image, text)]
            loss = info_nce(mixed[0], mixed[1], model.logit_scale, matches, positives=objective.positives)
            total = total + weight * loss[rows].mean() / K
    total.backward()
    factor = 2 if isinstance(objective, MMCoA) else 1
    return factor * total.item(), [factor * each for each in gradients(model)]


def shared(task: Given) -> tuple[float, list[Tensor]]:
    """The same by micro-batches."""
    model = Towers()
    negatives = StepNegatives(task, model, K)
    negatives.begin(loaded(), list(range(K)), Group())
    losses = []
    for number in range(K):
        part, loss = negatives.part(number)
        part.backward()
        losses.append(loss / K)
    return sum(losses), gradients(model)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(name="clean", image=False, text=False),
        Objective(name="x", image=True, text=True, positives="soft", clean_weight=0.3),
        Objective(name="tecoa", image=True, text=False, positives="diagonal", directions="image_to_text"),
        MMCoA(),
    ],
    ids=lambda objective: objective.name,
)
def test_loss_and_gradient_are_those_of_one_large_batch(objective: Any) -> None:
    task = Given(objective, (0.7, 0.3))
    (loss, found), (expected, wanted) = shared(task), plain(task, objective)
    assert loss == pytest.approx(expected, rel=1e-12)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_without_the_gradient_of_the_negatives_it_would_be_another() -> None:
    objective = Objective(name="clean", image=False, text=False)
    task = Given(objective, (1.0,))
    (loss, wanted), (same, lacking) = plain(task, objective), plain(task, objective, detached=True)
    assert same == pytest.approx(loss, rel=1e-12), "the loss does not tell"
    for whole, part in zip(wanted[:2], lacking[:2], strict=True):  # the temperature's is whole
        assert float((whole - part).norm() / whole.norm()) > 0.1


def test_the_micro_batches_see_each_others_pairs() -> None:
    """With four times the pairs to tell apart, the loss of the same weights is higher, and they end elsewhere."""
    within, beyond = (
        outcome(pairs(MAT, accumulation=4, max_steps=1, negatives=negatives)) for negatives in ("micro", "step")
    )
    assert beyond[1][0] > within[1][0] + 0.5 and beyond[0] != within[0]


def test_one_micro_batch_is_the_batch_itself() -> None:
    within, beyond = (
        outcome(pairs(MAT, accumulation=1, max_steps=2, negatives=negatives)) for negatives in ("micro", "step")
    )
    assert beyond[1] == pytest.approx(within[1], rel=1e-5)


@pytest.mark.parametrize("objective", [FARE(), MATTrades()], ids=["fare", "mat_trades"])
def test_a_loss_that_is_more_is_refused_at_once(scenes: Scenes, objective: PairObjective) -> None:
    trainer = pairs(MAT)
    task = trainer.task
    assert isinstance(task, PairTask)
    task.objective = objective
    with pytest.raises(UserError, match=rf"defense={objective.name} is not: choose trainer\.negatives=micro, or"):
        Trainer(trainer.model, task, TrainerSettings(**SETTINGS | {"negatives": "step"}), seed=3, validate=lambda m: {})


def test_no_cast_of_a_pass_without_a_graph_serves_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.11 the cache of bf16 would leave the weights of the second pass without a gradient."""
    part, cached = StepNegatives.part, []

    def seen(self: StepNegatives, number: int) -> tuple[Tensor, float]:
        assert torch.is_autocast_enabled("cpu")
        cached.append(torch.is_autocast_cache_enabled())
        return part(self, number)

    monkeypatch.setattr(StepNegatives, "part", seen)
    outcome(pairs(MAT, accumulation=2, max_steps=1, negatives="step", precision="bf16"))
    assert cached == [False, False]
