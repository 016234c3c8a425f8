"""Judging classifiers: ranks of the label, what a minimum-norm attack counts at an eps, resuming in the middle."""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import PGD, LogitOracle, MinimumNormAttack
from robustcli.data.classes import PixelClasses
from robustcli.evaluation import Attacked, ClassificationJudge, robust_recall, summarise
from robustcli.evaluation.classification import at_eps, label_ranks
from robustcli.models import Classifier
from robustcli.utils.seeding import generator

CLASSES = ("dark", "bright")


class Threshold(nn.Module):
    """Bright where the mean of an image is above 0.5; the distance to the boundary is known."""

    def forward(self, images: Tensor) -> Tensor:
        mean = 20 * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-mean, mean], dim=1)


class Walk(MinimumNormAttack):
    """To the boundary and a hair beyond, along the one direction that counts."""

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        gap = 0.5 - images.flatten(1).mean(1) + 1e-4 * (1 - 2 * labels)
        return (images + gap.view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture
def data() -> PixelClasses:
    level = torch.linspace(0.3, 0.7, 20)[:, None, None, None]
    noise = 0.01 * torch.rand(20, 1, 4, 4, generator=generator(0))
    pixels = level + noise - noise.mean(dim=(1, 2, 3), keepdim=True)
    labels = (pixels.mean(dim=(1, 2, 3)) > 0.5).long()
    labels[0] = 1  # wrong when clean
    names = [f"i{number}" for number in range(20)]
    return PixelClasses(
        "levels", "test", pixels=pixels, scale=1.0, labels=labels, classes=CLASSES, image_ids=names, fingerprint="0"
    )


@pytest.fixture
def model() -> Classifier:
    return Classifier(Threshold(), classes=CLASSES, mean=(0.0,), std=(1.0,))


def test_the_rank_of_the_label_counts_earlier_ties() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 5.0, 5.0]])
    assert label_ranks(logits, torch.tensor([1, 0, 2, 2])).tolist() == [3, 1, 3, 2]


def test_robust_accuracy_is_that_of_the_closed_form(data: PixelClasses, model: Classifier) -> None:
    judge = ClassificationJudge(data, batch_size=7)
    eps = 0.1
    records = pd.concat(
        [judge.records(model, "m", name, attack) for name, attack in [("clean", None), ("pgd", PGD(eps=eps))]]
    )
    table = summarise(records, resamples=20, seed=0).set_index("attack")
    mean = data.images(torch.arange(20)).flatten(1).mean(1)
    robust = ((mean - 0.5).abs() > eps) & ((mean > 0.5).long() == data.labels)
    assert table.loc["clean", "recall_at_1"] == pytest.approx(0.95)
    assert table.loc["pgd", "recall_at_1"] == pytest.approx(float(robust.float().mean()))
    assert robust_recall(table.reset_index(), "m") == pytest.approx(float(robust.float().mean()))
    assert set(records.loc[records["attack"] == "pgd", "status"]) == {"survived", "fooled", "already_wrong"}
    assert judge.chance() == {"image_to_class": 0.5}


def test_a_minimum_norm_attack_holds_the_whole_curve(data: PixelClasses, model: Classifier) -> None:
    judge = ClassificationJudge(data, batch_size=20)
    whole = judge.records(model, "m", "walk", Walk(norm="linf"))
    assert not whole["adversarial_correct"].any(), "without a radius everything falls"
    for eps in (0.0, 0.05, 0.15):
        read_off, asked = at_eps(whole, eps), judge.records(model, "m", "walk", Walk(norm="linf", eps=eps))
        assert read_off["adversarial_correct"].tolist() == asked["adversarial_correct"].tolist()
        assert read_off["status"].tolist() == asked["status"].tolist()
    assert at_eps(whole, 0.0)["adversarial_correct"].sum() == 19


def test_a_killed_attack_goes_on_at_the_images_that_are_left(data: PixelClasses, model: Classifier) -> None:
    judge, attacked = ClassificationJudge(data, batch_size=6), list[int]()
    parts: dict[str, pd.DataFrame] = {}

    def keep(found: Attacked) -> None:
        attacked.extend(found.rows.tolist())

    def part(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if name not in parts:
            if len(parts) == stop:
                raise KeyboardInterrupt
            parts[name] = compute()
        return parts[name]

    stop = 2
    with pytest.raises(KeyboardInterrupt):
        judge.records(model, "m", "pgd", PGD(), keep=keep, part=part)
    stop = 99
    again = judge.records(model, "m", "pgd", PGD(), keep=keep, part=part)
    assert attacked == list(range(20))
    pd.testing.assert_frame_equal(again, judge.records(model, "m", "pgd", PGD()))


def test_logits_without_a_number_are_an_error(data: PixelClasses, model: Classifier) -> None:
    model.network.forward = lambda images: torch.full((len(images), 2), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="NaN"):
        ClassificationJudge(data, batch_size=20).records(model, "m", "clean", None)
