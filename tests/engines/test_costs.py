"""Cost before work: what is said, and a budget of minutes that a resumed or rebuilt run keeps."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.cli.launch import launch
from robustcli.cli.rerun import rerun
from robustcli.engines import costs
from robustcli.evaluation import estimate
from robustcli.evaluation.aggregate import summarise
from robustcli.report import results

WORDS = ["dataset=digits", "model=digits", "evaluation.limit=24", "evaluation.eps_curve=[]", "diagnostics=off"]
WORDS += ["attacks=none", "attack=pgd", "attack.steps=2", "evaluation.resamples=10", "evaluation.batch_size=4"]


class Slow:
    """An estimate by which an image takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        found = estimate(*arguments, **settings)
        return type(found)(**{**vars(found), "seconds": self.seconds * found.images})


def test_a_budget_is_kept_by_fewer_images_which_a_resumed_and_a_rebuilt_run_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "estimate", Slow(6.0))
    budget = [*WORDS, "evaluation.budget_minutes=1"]
    with monkeypatch.context() as broken:
        broken.setattr(results, "summarise", lambda *_, **__: 1 / 0)  # as if killed when the images were chosen
        assert launch("evaluate", [*budget, "hydra.run.dir=run"]) == 1
    monkeypatch.setattr(costs, "estimate", Slow(20.0))  # the machine is busy now
    capsys.readouterr()
    assert results.summarise is summarise and launch("evaluate", ["resume=run"]) == 0
    said = capsys.readouterr().out
    assert "judge: 10 images x 1 model x 1 attack, at most" in said
    sentence = "Judged on the first 10 of 24 images, which is what evaluation.budget_minutes=1 pays for."
    assert sentence in " ".join(said.split()) and sentence in (tmp_path / "run" / "report.md").read_text()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["budget"] == {"minutes": 1.0, "images": 10} and manifest["estimate"]["judge"] > 0
    records = pd.read_parquet(tmp_path / "run" / "records.parquet")
    assert launch("evaluate", [*WORDS, "hydra.run.dir=whole"]) == 0
    whole = pd.read_parquet(tmp_path / "whole" / "records.parquet")
    first = whole[whole["image_id"].isin(whole["image_id"].unique()[:10])].reset_index(drop=True)
    assert len(records) == 20 and records.drop(columns="mean").equals(first.drop(columns="mean"))
    assert rerun(tmp_path / "run") == 0


def test_a_budget_that_does_not_pay_for_one_image_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "estimate", Slow(90.0))
    words = [*WORDS, "evaluation.budget_minutes=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("evaluate", words) == 2
    said = capsys.readouterr().err
    assert "evaluation.budget_minutes is 1, but one image takes 90 s" in said and "attacks=quick" in said
    assert not (tmp_path / "run").exists()


def test_so_many_processes_work_at_a_time_as_have_cores_or_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs.os, "sched_getaffinity", lambda _: set(range(4)))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [costs.ways_of(count, cpu, 1) for count in (1, 3, 9)] == [1, 3, 4]
    assert [costs.ways_of(9, cpu, threads) for threads in (2, 3, 8)] == [2, 1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert costs.ways_of(9, cuda, 1) == 2


def test_diagnostics_are_told_in_a_line_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "diagnostics_of", lambda *_, **__: [])  # what they find is another's test
    words = [word for word in WORDS if not word.startswith("diagnostics")]
    assert launch("evaluate", [*words, "evaluation.limit=8", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "diagnostics: 17 checks of 1 figure on 8 images, at most " in said and "(diagnostics=off leaves" in said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["estimate"].keys() == {"judge", "diagnostics"} and manifest["estimate"]["diagnostics"] > 0


def test_a_training_tells_its_steps_and_its_time_once_they_are_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=digits", "model=digits", "model.checkpoint=null", "attacks=none", "diagnostics=off"]
    words += ["trainer.batch_size=4", "evaluation.limit=8", "evaluation.before=true", "evaluation.resamples=10"]
    losses = []
    for steps in (2, 22):
        place = tmp_path / str(steps)
        assert (
            launch(
                "train-classifier",
                [*words, f"trainer.max_steps={steps}", "trainer.log_every=1", f"hydra.run.dir={place}"],
            )
            == 0
        )
        losses.append(pd.read_csv(place / "training.csv")["loss"].tolist())
    said = capsys.readouterr().out
    assert "train: 2 steps of 4 images\n" in said and "train: 22 steps of 4 images: about 0:00:0" in said
    assert "judge: 8 images x 2 models x 0 attacks, 16 forward and 0 backward passes: about" in said
    assert losses[0][0] == losses[1][0]  # the timed steps were those of a copy
