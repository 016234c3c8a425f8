"""`learn-alphas` as a user runs it; the generator needs no training, the digits and their classifier are shipped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.cli.launch import launch
from robustcli.defenses.purification import purifier
from robustcli.defenses.purification.alpha_search import AlphaEvaluator
from robustcli.defenses.purification.alphas import schedule
from robustcli.models.generators import Generator

from ..two_latents import TwoLatents

WORDS = [
    "purifier.draws=2",
    "purifier.attenuation=1",
    "adversarial.images=12",
    "trials=7",
    "objectives=[adversarial,clean]",
    "evaluation.resamples=20",
]


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purifier, "load_generator", _two_latents)


def _two_latents(*_: Any, **__: Any) -> Generator:
    return TwoLatents()


def learn(directory: Path, *words: str) -> int:
    return launch("learn-alphas", [*WORDS, *words, f"hydra.run.dir={directory}"])


def test_learned_alphas_and_the_proof_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert learn(run) == 0
    found = json.loads((run / "alphas.json").read_text())
    assert schedule(run, 2).tolist() == found["alphas"]
    trials, records = pd.read_csv(run / "trials.csv"), pd.read_parquet(run / "records.parquet")
    assert list(trials["origin"][:5]) == ["cosine", "linear", "half", "1 - linear", "1 - cosine"] and len(trials) == 7
    chosen = trials[trials["chosen"]]
    assert chosen[["alpha_0", "alpha_1"]].to_numpy().tolist() == [pytest.approx(found["alphas"])]
    sums = trials["adversarial"] + trials["clean"]
    assert float(chosen["adversarial"].iloc[0] + chosen["clean"].iloc[0]) == sums.max() and bool(chosen["front"].all())
    assert (trials["adversarial_low"] <= trials["adversarial"]).all()
    metrics = json.loads((run / "metrics.json").read_text())
    own = records[(records["alphas"] == "learned") & (records["kind"] == "adversarial")]["right"]
    assert metrics["objective"] == metrics["learned/adversarial/accuracy"] == own.mean() and len(own) == 12
    assert metrics["reconstruction/adversarial/accuracy"] == 0.0 < metrics["linear/adversarial/accuracy"]
    assert all((run / "figures" / f"{name}.png").exists() for name in ("pareto", "history", "schedules"))
    report = (run / "report.md").read_text()
    assert "NOT ADAPTIVE" in report and "flatters" in report and "12 are kept" in report
    assert "NOT an adaptive attack" in " ".join(capsys.readouterr().out.replace("\n", " ").split())


def test_stopped_and_resumed_ends_in_the_same_alphas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learn(tmp_path / "whole", "objectives=[adversarial]", "trials=8") == 0
    right, asked = AlphaEvaluator.correct, []

    def stopping(self: AlphaEvaluator, alphas: Sequence[float] | str, *rest: Tensor) -> Tensor:
        asked.append(alphas)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return right(self, alphas, *rest)

    monkeypatch.setattr(AlphaEvaluator, "correct", stopping)
    assert learn(tmp_path / "cut", "objectives=[adversarial]", "trials=8") == 130
    before = (tmp_path / "cut" / "adversarial" / "train.safetensors").stat().st_mtime_ns
    assert launch("learn-alphas", [f"resume={tmp_path / 'cut'}"]) == 0
    assert asked[7] == asked[6] and len(asked) == 7 + 2 + 8, "the first six trials were asked again"
    assert (tmp_path / "cut" / "adversarial" / "train.safetensors").stat().st_mtime_ns == before
    for name in ("alphas.json", "trials.csv", "metrics.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


ADAPTIVE = ["alphas.against=adaptive", "alphas.steps=2", "alphas.draws=1", "objectives=null"]


def test_each_trial_is_attacked_through_the_purifier_with_its_own_alphas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, attacked, right = tmp_path / "run", [], AlphaEvaluator.attacked

    def noted(self: AlphaEvaluator, attack: Any, threat: Any, alphas: Any, images: Tensor, *rest: Tensor) -> Tensor:
        found = right(self, attack, threat, alphas, images, *rest)
        attacked.append((alphas, float((found - images).flatten(1).norm(dim=1).max())))
        return found

    monkeypatch.setattr(AlphaEvaluator, "attacked", noted)
    assert learn(run, *ADAPTIVE) == 0
    trials, records = pd.read_csv(run / "trials.csv"), pd.read_parquet(run / "records.parquet")
    assert [alphas for alphas, _ in attacked[:7]] == [tuple(each) for each in trials[["alpha_0", "alpha_1"]].to_numpy()]
    assert len(attacked) == 7 + 4 and all(0 < moved <= 1 + 1e-5 for _, moved in attacked)
    assert (trials["adaptive"] <= trials["clean"]).all() and not (run / "adversarial" / "train.safetensors").exists()
    kinds = records.groupby("kind")["right"].mean()
    assert set(kinds.index) == {"clean", "adversarial", "adaptive"} and kinds["adaptive"] < kinds["clean"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["objective"] == metrics["learned/adaptive/accuracy"]
    report = (run / "report.md").read_text()
    assert "PGD of 2 steps" in report and "NOT ADAPTIVE" not in report
    # 12 images: 7 trials and 4 schedules attacked, each clean too, 4 on images made before; a gradient a step.
    told = capsys.readouterr().out
    assert f"{12 * (11 * (2 + 1 + 3) + 11 + 4):,} forward and {12 * 11 * 2} backward passes" in told


def test_an_adaptive_search_that_was_stopped_ends_in_the_same_alphas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*ADAPTIVE, "trials=4", "sampler=random", "adversarial.images=6"]
    assert learn(tmp_path / "whole", *words) == 0
    right, asked = AlphaEvaluator.attacked, []

    def stopping(self: AlphaEvaluator, *rest: Any) -> Tensor:
        asked.append(rest[2])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return right(self, *rest)

    monkeypatch.setattr(AlphaEvaluator, "attacked", stopping)
    assert learn(tmp_path / "cut", *words) == 130
    assert launch("learn-alphas", [f"resume={tmp_path / 'cut'}"]) == 0
    assert asked[3] == asked[2] and len(asked) == 3 + 2 + 4, "the first two trials were attacked again"
    for name in ("alphas.json", "trials.csv", "metrics.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_alphas_by_what_each_latent_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [word for word in WORDS if not word.startswith(("trials", "objectives"))]
    words += ["alphas=mutual_information", "alphas.images=200", "alphas.steps=1", "alphas.draws=1"]
    assert launch("learn-alphas", [*words, f"hydra.run.dir={run}"]) == 0
    found, latents = json.loads((run / "alphas.json").read_text()), pd.read_csv(run / "latents.csv")
    assert schedule(run, 2).tolist() == found["alphas"] == latents["alpha"].tolist()
    # Half the size of a digit shows what it is; what is left of it shows little beyond that.
    assert found["alphas"][0] == 0.0 < found["alphas"][1] <= 1.0
    assert latents["nats"][0] > 1.5 and found["entropy"] == pytest.approx(2.3, abs=0.02)
    assert {"information", "schedules"} <= {path.stem for path in (run / "figures").glob("*.png")}
    assert set(pd.read_parquet(run / "records.parquet")["kind"]) == {"clean", "adversarial", "adaptive"}
    assert "What each latent tells of the class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alphas.against=black_box"], "alphas.against is 'black_box'"),
        (["alphas.steps=3"], "nothing would read it, because the images are made once"),
        (["alphas.against=adaptive", "alphas.steps=0"], "alphas.steps is 0"),
        (["alphas=mutual_information"], "nothing is searched with alphas=mutual_information"),
        (["alphas=mutual_information", "~trials"], "trials"),
        (["adversarial.split=test"], "adversarial.split and evaluation.split are both test"),
        (["threat.eps=0"], "threat.eps is 0"),
        (["threat.eps=x"], "threat.eps is 'x'"),
        (["threat.eps=1e-6", "adversarial.images=1"], "raise threat.eps"),
        (["objectives=[robust]"], "objectives is ['robust']"),
        (["sampler=grid"], "sampler is 'grid'"),
        (["trials=0"], "trials is 0"),
        (["purifier.preprocess=noise"], "purifier.preprocess draws noise"),
        (["purifier.draws=0"], "purifier.draws is 0"),
        (["model.checkpoint=null"], "random weights"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn(tmp_path / "run", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_two_latents_keep_what_they_get() -> None:
    images, generator = torch.rand(2, 1, 8, 8), TwoLatents()
    noise = [torch.randn(2, *shape) for shape in generator.latent_shapes]
    assert torch.allclose(generator.decode(generator.encode(images), torch.zeros(2), noise), images, atol=1e-6)


def test_a_cleaner_without_alphas_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("learn-alphas", ["purifier=blur", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "needs a purifier that has alphas" in capsys.readouterr().err
