"""`attack` and `evaluate` on classifiers, as a user runs them, on the embedded digits with the shipped weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from robustcli.attacks import PGD
from robustcli.cli.launch import launch
from robustcli.diagnostics import CHECKS

DIGITS = ["dataset=digits", "model=digits", "evaluation.resamples=20", "evaluation.limit=48"]
WHOLE = "threat.eps=0.25"


def metrics(directory: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((directory / "metrics.json").read_text())
    return found


def test_a_minimum_norm_attack_gives_table_and_curve_in_one_run(tmp_path: Path) -> None:
    steps = [
        "attack=deepfool",
        "threat=smallest",
        "threat.eps=1.0",
        "evaluation.eps_curve=[0, 0.5, 1, 20]",
        "diagnostics=off",
    ]
    assert launch("attack", [*DIGITS, *steps, f"hydra.run.dir={tmp_path / 'a'}"]) == 0
    found, records = metrics(tmp_path / "a"), pd.read_parquet(tmp_path / "a" / "records.parquet")
    curve = [found[f"model/deepfool@{eps:g}/image_to_class/recall_at_1"] for eps in (0, 0.5, 1, 20)]
    assert curve[0] == found["model/clean/image_to_class/recall_at_1"]
    assert curve == sorted(curve, reverse=True) and curve[-1] == 0 < curve[1]
    assert curve[2] == found["model/deepfool/image_to_class/recall_at_1"]
    kept = load_file(tmp_path / "a" / "adversarial" / "images-000000.safetensors")
    assert kept["images"].shape == (48, 1, 8, 8) and kept["rows"].tolist() == list(range(48))
    row = records[(records["attack"] == "deepfool") & (records["status"] == "fooled")].iloc[0]
    assert 0 < row["norm"] <= 1 and row["gradients"] > 0 and row["label"] != row["adversarial_class"]


def test_a_minimum_norm_attack_without_a_radius_tells_how_far_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"hydra.run.dir={tmp_path / 'a'}"
    assert launch("attack", [*DIGITS, "attack=deepfool", "threat=smallest", "diagnostics=off", place]) == 0
    found, records = metrics(tmp_path / "a"), pd.read_parquet(tmp_path / "a" / "records.parquet")
    norms = records.loc[(records["attack"] == "deepfool") & (records["status"] == "fooled"), "norm"]
    curve = {
        float(key.split("/")[1].removeprefix("deepfool@")): value
        for key, value in found.items()
        if "/deepfool@" in key and key.endswith("recall_at_1")
    }
    assert min(curve) == 0 and curve[0] == found["model/clean/image_to_class/recall_at_1"]
    assert norms.max() <= max(curve) <= norms.max() + 1e-6
    assert curve[max(curve)] == found["model/deepfool/image_to_class/recall_at_1"]
    for eps, value in curve.items():
        assert value == pytest.approx(found["model/clean/image_to_class/recall_at_1"] - (norms <= eps).sum() / 48)
    assert found["model/deepfool/image_to_class/norm_median"] == pytest.approx(norms.median())
    assert f"{norms.median():.3g}" in capsys.readouterr().out
    assert "any amount" in (tmp_path / "a" / "report.md").read_text()


def test_evaluate_judges_several_models_and_what_transfers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = Path("robustcli/assets/tiny_digits.safetensors").absolute()
    models = f"checkpoints={{one: {shipped}, two: {shipped}}}"
    suite = ["attacks=quick", "+attack@attacks.fgsm=fgsm", WHOLE, "evaluation.eps_curve=[]", "transfer=true"]
    assert launch("evaluate", [*DIGITS, models, *suite, f"hydra.run.dir={tmp_path / 'e'}"]) == 0
    found = metrics(tmp_path / "e")
    assert found["one/pgd/image_to_class/recall_at_1"] <= found["one/fgsm/image_to_class/recall_at_1"]
    assert found["one/pgd/image_to_class/recall_at_1"] == found["two/pgd/image_to_class/recall_at_1"]
    table = pd.read_csv(tmp_path / "e" / "transfer.csv").set_index(["source", "target"])
    assert table.loc[("one", "two"), "success_rate"] == table.loc[("one", "one"), "success_rate"]
    findings = pd.read_csv(tmp_path / "e" / "diagnostics.csv")
    assert set(findings["model"]) == {"one", "two"} and set(findings["status"]) <= {"ok", "suspect", "not run"}
    assert "Accuracy in percent" in capsys.readouterr().out
    assert "Diagnostics" in (tmp_path / "e" / "report.md").read_text()


def test_strict_ends_with_1_where_a_claim_is_suspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single step, of which twice as many mislead more."""
    weak = [
        "attack=pgd",
        "threat.eps=0.2",
        "attack.steps=1",
        "attack.alpha=0.2",
        "evaluation.limit=200",
        "attack.random_start=false",
    ]
    place = f"hydra.run.dir={tmp_path / 's'}"
    assert launch("attack", [*DIGITS, *weak, "diagnostics=strict", place]) == 1
    said = capsys.readouterr().err
    assert "not to be believed" in said and "more steps" in said and "Traceback" not in said
    assert (tmp_path / "s" / "metrics.csv").exists() and (tmp_path / "s" / "FAILED").exists()
    assert launch("attack", [*DIGITS, *weak, "diagnostics=auto", f"hydra.run.dir={tmp_path / 'auto'}"]) == 0


def test_an_attack_on_a_surrogate_is_weaker_and_says_so(tmp_path: Path) -> None:
    assert launch("train-classifier", ["experiment=tiny_digits", "trainer.max_steps=60", "diagnostics=off",
                                       f"hydra.run.dir={tmp_path / 't'}"]) == 0  # fmt: skip
    other = tmp_path / "t" / "checkpoints" / "last.safetensors"
    common = ["attack=pgd", WHOLE, "diagnostics=off"]
    assert launch("attack", [*DIGITS, *common, f"hydra.run.dir={tmp_path / 'white'}"]) == 0
    assert (
        launch("attack", [*DIGITS, *common, f"evaluation.surrogate={other}", f"hydra.run.dir={tmp_path / 'black'}"])
        == 0
    )
    white, black = (metrics(tmp_path / n)["model/pgd/image_to_class/recall_at_1"] for n in ("white", "black"))
    assert white < black < 1
    assert "a surrogate" in (tmp_path / "black" / "report.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset=digits", "model=digits", "attack=sga"], "edits captions"),
        (["dataset=digits", "attack=pgd"], "or choose a classifier, model=..."),
        (["model=digits", "attack=pgd"], "captions need a dual encoder"),
        (["attack=autoattack"], "needs a classifier"),
        (["attack=torchattacks"], "needs a classifier"),
        (["dataset=digits", "model=resnet20_cifar", "attack=pgd"], "+model.pretrained=random judges random ones"),
        (["dataset=digits", "model=torchvision", "model.classes=10", "attack=pgd"], "; model.pretrained=random judges"),
        (["model=open_clip"], "random weights"),
        (["model=tiny", "model.checkpoint=null"], "random weights"),
        (["+model.pretrained=random"], "model.pretrained is random, but model.checkpoint is shipped"),
        ([*DIGITS, "attack=pgd", "+evaluation.surrogate={_target_: robustcli.models.lenet}"], "random weights"),
        (["dataset=digits", "model=scene_classes", "attack=pgd"], "belongs to the other"),
        ([*DIGITS, "attack=torchattacks", "attack.name=PGDL3"], "PGDL2"),
        ([*DIGITS, "attack=pgd", "threat.eps=4"], "4/255"),
        ([*DIGITS, "attack=cw"], "threat.norm"),
    ],
)
def test_mistakes_are_told_before_any_work(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch("attack", [*overrides, f"hydra.run.dir={tmp_path / 'm'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_killed_attack_goes_on_and_ends_in_the_same_records(tmp_path: Path) -> None:
    words = [*DIGITS, "attack=pgd", WHOLE, "attack.steps=60", "attack.early_stop=false",
             "evaluation.batch_size=8", "diagnostics=off"]  # fmt: skip
    assert launch("attack", [*words, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    place, command = tmp_path / "cut", [sys.executable, "-m", "robustcli", "attack", *words]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={place}"], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    parts = place / "parts"
    while not (parts.is_dir() and len(list(parts.glob("adaptive%2Fpgd%2F*.parquet"))) >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("adaptive%2Fpgd%2F*.parquet")}
    assert 2 <= len(done) < 6 and not (place / "DONE").exists()
    assert launch("attack", [f"resume={place}"]) == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(place / "records.parquet"), pd.read_parquet(tmp_path / "whole" / "records.parquet")
    )
    assert (place / "log.txt").read_text().count("was computed before, kept") == len(done)


def test_a_run_killed_within_the_diagnostics_goes_on_at_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DIGITS, "attack=pgd", WHOLE]
    assert launch("attack", [*words, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    assert "diagnostics 17/17  check" in capsys.readouterr().err

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setitem(CHECKS, "more steps", stop)  # type: ignore[arg-type]
        assert launch("attack", [*words, f"hydra.run.dir={killed}"]) == 130
    done = list(CHECKS)[: list(CHECKS).index("more steps")]
    assert not (killed / "diagnostics.csv").exists()
    assert len(list((killed / "parts").glob("diagnostics*"))) == len(done)
    with monkeypatch.context() as patch:
        for check in done:
            patch.setitem(CHECKS, check, stop)  # type: ignore[arg-type]
        assert launch("attack", [f"resume={killed}"]) == 0
    whole, resumed = (pd.read_csv(place / "diagnostics.csv") for place in (tmp_path / "whole", killed))
    pd.testing.assert_frame_equal(whole, resumed)
    assert metrics(tmp_path / "whole") == metrics(killed) and not (killed / "parts").exists()
    phases = json.loads((killed / "manifest.json").read_text())["phases"]
    assert set(phases) == {"load", "attack", "diagnostics", "report"} and min(phases.values()) >= 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_runs_out_within_an_attack_is_told_with_the_remedy(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    words, place = [*DIGITS, "attack=pgd", "diagnostics=off", "evaluation.limit=8"], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PGD, "ascend", fail)
        assert launch("attack", [*words, f"hydra.run.dir={place}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: the memory ran out (traceback in ") and f"resume={place}" in said
    assert "evaluation.batch_size" in said and "device=cpu" in said and (place / "FAILED").exists()
    assert launch("attack", [f"resume={place}"]) == 0 and (place / "DONE").exists()


def test_a_check_that_failed_is_run_again_where_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    words, place = [*DIGITS, "attack=pgd", "evaluation.limit=8"], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setitem(CHECKS, "stronger search", fail)  # type: ignore[arg-type]
        patch.setitem(CHECKS, "more restarts", stop)  # type: ignore[arg-type]
        assert launch("attack", [*words, f"hydra.run.dir={place}"]) == 130
    assert launch("attack", [f"resume={place}"]) == 0
    found = pd.read_csv(place / "diagnostics.csv").set_index("check")
    assert found.loc["stronger search", "status"] in ("ok", "suspect") and not found["failed"].any()


def test_diagnostics_take_a_share_of_the_passes_of_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*DIGITS, "attack=pgd", "threat.eps=0.02"]
    assert launch("attack", [*words, "evaluation.limit=40", f"hydra.run.dir={tmp_path / 'auto'}"]) == 0
    found = pd.read_csv(tmp_path / "auto" / "diagnostics.csv").set_index("check")
    left_out = list(found.index[found["left_out"]])
    assert "monotone in eps" in left_out and set(found.loc[left_out, "status"]) == {"not run"}
    assert "closest of the" in found.loc["black box", "measured"]
    said, report = " ".join(capsys.readouterr().out.split()), (tmp_path / "auto" / "report.md").read_text()
    assert f"({len(left_out)} left out)" in said and f"({len(left_out)} left out)" in report
    assert "(diagnostics.share=null runs it)" in said and "it takes about" in report
    for more in ("diagnostics.share=null", "diagnostics=strict"):  # strict may not pass for what was not run
        place = tmp_path / more
        launch("attack", [*words, "evaluation.limit=8", more, f"hydra.run.dir='{place}'"])
        whole = pd.read_csv(place / "diagnostics.csv").set_index("check")
        assert not whole["left_out"].any() and whole.loc["black box", "passes"] > 0
