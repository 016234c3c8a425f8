"""Judging classifiers: ranks of the label, what a minimum-norm attack counts at an eps, resuming in the middle."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import PGD, Attack, LogitOracle, MinimumNormAttack, ThreatModel
from robustcli.data.classes import PixelClasses
from robustcli.evaluation import Attacked, AttackRun, ClassificationEvaluator
from robustcli.evaluation.aggregate import robust_recall, summarise
from robustcli.evaluation.records import within
from robustcli.metrics import label_ranks
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

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
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


def evaluator(data: PixelClasses, threat: ThreatModel, *, batch_size: int = 20) -> ClassificationEvaluator:
    return ClassificationEvaluator(data, threat, batch_size=batch_size)


def run_of(judge: ClassificationEvaluator, model: Classifier, name: str, attack: Attack) -> AttackRun:
    entry = judge.entry("m", model)
    return AttackRun(name=name, attack=attack, threat=judge.threat, access="adaptive", victim=model, entries=(entry,))


def test_the_rank_of_the_label_counts_earlier_ties() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 5.0, 5.0]])
    assert label_ranks(logits, torch.tensor([1, 0, 2, 2])).tolist() == [3, 1, 3, 2]


def test_robust_accuracy_is_that_of_the_closed_form(data: PixelClasses, model: Classifier) -> None:
    eps = 0.1
    judge = evaluator(data, ThreatModel(eps=eps), batch_size=7)
    records = pd.concat([judge.clean(judge.entry("m", model)), judge.attacked(run_of(judge, model, "pgd", PGD()))])
    table = summarise(records, resamples=20, seed=0).set_index("attack")
    mean = data.images(torch.arange(20)).flatten(1).mean(1)
    robust = ((mean - 0.5).abs() > eps) & ((mean > 0.5).long() == data.labels)
    assert table.loc["clean", "recall_at_1"] == pytest.approx(0.95)
    assert table.loc["pgd", "recall_at_1"] == pytest.approx(float(robust.float().mean()))
    assert robust_recall(table.reset_index(), "m") == pytest.approx(float(robust.float().mean()))
    assert set(records.loc[records["attack"] == "pgd", "status"]) == {"survived", "fooled", "already_wrong"}
    assert judge.chance() == {"image_to_class": 0.5}


def test_a_minimum_norm_attack_holds_the_whole_curve(data: PixelClasses, model: Classifier) -> None:
    free = evaluator(data, ThreatModel(eps=None))
    clean, whole = free.clean(free.entry("m", model)), free.attacked(run_of(free, model, "walk", Walk()))
    assert not whole["adversarial_correct"].any(), "without a radius everything falls"
    for eps in (0.0, 0.05, 0.15):
        bounded = evaluator(data, ThreatModel(eps=eps))
        read_off, asked = within(whole, clean, eps), bounded.attacked(run_of(bounded, model, "walk", Walk()))
        assert read_off["adversarial_correct"].tolist() == asked["adversarial_correct"].tolist()
        assert read_off["status"].tolist() == asked["status"].tolist()
        assert read_off["mean"].tolist() == asked["mean"].tolist()
    assert within(whole, clean, 0.0)["adversarial_correct"].sum() == 19


class Cheat(PGD):
    """Takes what it computes for allowed, whatever its base class says."""

    def __call__(self, model, images, labels, threat=None, *, sample_ids=None):  # type: ignore[no-untyped-def]
        found = super().__call__(model, images, labels, threat, sample_ids=sample_ids)
        return replace(found, images=(images + 0.3).clamp(0, 1))


def test_a_result_beyond_the_threat_model_fails_the_run(data: PixelClasses, model: Classifier) -> None:
    judge = evaluator(data, ThreatModel(eps=0.1))
    with pytest.raises(RuntimeError, match=r"eps is 0\.1"):
        judge.attacked(run_of(judge, model, "cheat", Cheat()))


def test_a_killed_attack_goes_on_at_the_images_that_are_left(data: PixelClasses, model: Classifier) -> None:
    judge, attacked = evaluator(data, ThreatModel(), batch_size=6), list[int]()
    parts: dict[str, pd.DataFrame] = {}

    def keep(run: AttackRun, found: Attacked) -> None:
        attacked.extend(found.rows.tolist())

    def part(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if name not in parts:
            if len(parts) == stop:
                raise KeyboardInterrupt
            parts[name] = compute()
        return parts[name]

    run, stop = run_of(judge, model, "pgd", PGD()), 2
    with pytest.raises(KeyboardInterrupt):
        judge.attacked(run, keep=keep, part=part)
    stop = 99
    again = judge.attacked(run, keep=keep, part=part)
    assert attacked == list(range(20))
    pd.testing.assert_frame_equal(again, judge.attacked(run))


def test_logits_without_a_number_are_an_error(data: PixelClasses, model: Classifier) -> None:
    judge = evaluator(data, ThreatModel())
    entry = judge.entry("m", model)
    model.network.forward = lambda images: torch.full((len(images), 2), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="NaN"):
        judge.clean(entry)


class Liar(PGD):
    """PGD that reports the opposite of its success."""

    def __call__(self, model, images, labels, threat=None, *, sample_ids=None):  # type: ignore[no-untyped-def]
        result = super().__call__(model, images, labels, threat, sample_ids=sample_ids)
        return replace(result, success=~result.success)


class Halves(PGD):
    """Names two members, by the parity of the image's number."""

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        for number, name in enumerate(("even", "odd")):
            oracle.credit(name, torch.nonzero(sample_ids % 2 == number).flatten())
        return super().search(oracle, images, labels, sample_ids, threat)


def test_a_record_names_the_member_that_gave_its_image(data: PixelClasses, model: Classifier) -> None:
    judge = evaluator(data, ThreatModel(eps=0.1), batch_size=7)
    records = judge.attacked(run_of(judge, model, "halves", Halves())).set_index("query_id")["member"]
    assert records["i0"] == "", "wrong when clean, not attacked"
    assert records[[f"i{n}" for n in range(1, 20)]].tolist() == [("even", "odd")[n % 2] for n in range(1, 20)]
    assert set(judge.attacked(run_of(judge, model, "pgd", PGD()))["member"]) == {""}


def test_the_success_that_an_attack_reports_is_not_read(data: PixelClasses, model: Classifier) -> None:
    judge = evaluator(data, ThreatModel(eps=0.1))
    honest, lying = (judge.attacked(run_of(judge, model, "pgd", attack)) for attack in (PGD(), Liar()))
    pd.testing.assert_frame_equal(lying, honest)


def test_each_record_is_that_of_the_image_that_it_names(data: PixelClasses, model: Classifier) -> None:
    """Also where the batches are smaller than the set and the images are not in the order of their names."""
    eps, mean = 0.1, data.images(torch.arange(20)).flatten(1).mean(1)
    judge = evaluator(data, ThreatModel(eps=eps), batch_size=7)
    clean, attacked = judge.clean(judge.entry("m", model)), judge.attacked(run_of(judge, model, "pgd", PGD()))
    correct = (mean > 0.5).long() == data.labels
    robust = correct & ((mean - 0.5).abs() > eps)
    for table in (clean, attacked):
        rows = table.set_index("query_id").loc[data.image_ids]
        assert rows["image_id"].tolist() == data.image_ids
        assert rows["label"].tolist() == [CLASSES[label] for label in data.labels.tolist()]
        assert rows["clean_class"].tolist() == [CLASSES[int(level > 0.5)] for level in mean.tolist()]
        assert rows["clean_correct"].tolist() == correct.tolist()
    assert rows["adversarial_correct"].tolist() == robust.tolist()
