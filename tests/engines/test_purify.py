"""`purify` as a user runs it, on the digits and the weights that come with the package."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from robustcli.cli.launch import launch
from robustcli.cli.rerun import rerun

SMALL = [
    "protocol=smoke",
    "evaluation.eps_curve=[1/1]",
    "evaluation.limit=8",
    "evaluation.resamples=20",
    "purifier.draws=2",
    "~baselines.noise",
    "~baselines.blur",
    "diagnostics=off",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert launch("purify", [*SMALL, f"hydra.run.dir={directory}"]) == 0
    return directory


def test_the_directory_holds_every_access_of_every_defence(finished: Path) -> None:
    records = pd.read_parquet(finished / "records.parquet")
    assert set(records["model"]) == {"none", "purifier", "jpeg"}
    assert set(records[records["model"] == "purifier"]["access"]) == {"clean", "static", "bpda", "adaptive"}
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["objective"] == metrics["purifier/worst/worst@1/image_to_class/recall_at_1"]
    assert metrics["none/clean/clean/image_to_class/recall_at_1"] > 0.8
    assert metrics["purifier/worst/worst@1/image_to_class/worst"] <= metrics["objective"]
    for name in ("accuracy_over_radius", "strips_purifier", "strips_jpeg", "latents_purifier"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 1000
    report = (finished / "report.md").read_text()
    assert "paper's protocol" in report and "fresh" in report and "ADAPTIVE COLUMN IS MISSING" not in report


def test_the_manifest_names_the_weights_of_classifier_and_generator(finished: Path) -> None:
    weights = json.loads((finished / "manifest.json").read_text())["weights"]
    assert len({weights["none"], weights["purifier"], weights["jpeg"]}) == 3


def test_a_rerun_gives_the_same_numbers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun(finished) == 0


def test_killed_and_resumed_ends_in_the_same_records(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SMALL, f"hydra.run.dir={run}"]
    started = subprocess.Popen([sys.executable, "-m", "robustcli", "purify", *words], env={**os.environ})
    deadline = time.monotonic() + 120
    while len(list(run.glob("parts/*.parquet"))) < 3:
        assert started.poll() is None and time.monotonic() < deadline, "it ended before its third part"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (run / "DONE").exists(), "it was through before it could be killed"
    assert launch("purify", [f"resume={run}"]) == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(run / "records.parquet"), pd.read_parquet(finished / "records.parquet")
    )


def test_a_table_without_adaptive_attacks_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert launch("purify", [*SMALL, "evaluation.access=[static]", f"hydra.run.dir={run}"]) == 0
    assert "THE ADAPTIVE COLUMN IS MISSING" in capsys.readouterr().out
    assert "THE ADAPTIVE COLUMN IS MISSING" in (run / "report.md").read_text()


def test_without_attacks_it_tells_what_the_defences_cost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["attacks=none", "baselines=null", "evaluation.limit=6", "evaluation.fresh=2", "purifier.draws=1"]
    assert launch("purify", [*words, "evaluation.resamples=20", "diagnostics=off", f"hydra.run.dir={run}"]) == 0
    assert set(pd.read_csv(run / "metrics.csv")["attack"]) == {"clean"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["objective"] == metrics["purifier/clean/clean/image_to_class/recall_at_1"] > 0.5
    assert {path.stem for path in (run / "figures").glob("*.png")} == {"strips_purifier", "latents_purifier"}


def test_variants_stand_side_by_side(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "evaluation.access=[static]", "~baselines.jpeg", f"hydra.run.dir={run}"]
    variants = "variants={all: {alphas: none}, 0.5: {alphas: linear, attenuation: 0.5}}"
    assert launch("purify", [*words, variants]) == 0
    assert list(dict.fromkeys(pd.read_parquet(run / "records.parquet")["model"])) == ["none", "all", "0.5"]


def test_a_purifier_stands_in_front_of_what_other_commands_judge(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "dataset=digits",
        "model=digits",
        "attack=pgd",
        "threat.eps=16/255",
        "purifier=mlvgm",
        "evaluation.fresh=4",
    ]
    small = ["evaluation.limit=8", "evaluation.resamples=20", "diagnostics=off", "purifier.draws=2"]
    assert launch("attack", [*words, *small, f"hydra.run.dir={run}"]) == 0
    found = json.loads((run / "metrics.json").read_text())
    assert found["model+mlvgm/clean/clean/image_to_class/recall_at_1"] > 0.8
    assert found["objective"] == found["model+mlvgm/worst/worst@0.062745/image_to_class/recall_at_1"]
    records = pd.read_parquet(run / "records.parquet")
    assert set(records[records["model"] == "model+mlvgm"]["access"]) == {"clean", "static", "bpda", "adaptive"}
    assert set(records[records["defence"] == "mlvgm"]["draws"]) == {4}


def test_a_baseline_may_be_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [
        "protocol=smoke",
        "evaluation.limit=4",
        "diagnostics=off",
        "purifier.draws=1",
        "evaluation.access=[static]",
    ]
    assert launch("purify", [*small, "baselines.jpeg=null", f"hydra.run.dir={run}"]) == 0
    assert set(pd.read_parquet(run / "records.parquet")["model"]) == {"none", "purifier", "noise", "blur"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["purifier.generator=nowhere.pt"], "there is no such file"),
        (["dataset=scene_classes", "model=scene_classes", "dataset.size=64"], "3 x 64 x 64"),
        (["dataset=scenes"], "has captions and no classes"),
        (["purifier.alphas=linaer"], "did you mean 'linear'"),
        (["purifier.alphas=[0,1]"], "2 values, but the generator has 6 latents"),
        (["purifier.attenuation=2"], "is a share, from 0 to 1"),
        (["threat.eps=null", "~attacks.pgd"], "a table of defences stands at a radius"),
        (["evaluation.access=[static,grey]"], "'grey'"),
        (["threat.norm=linf"], "Carlini and Wagner's attack is for l2"),
        (["evaluation.eot=abc"], "evaluation.eot is abc"),
        (["purifier.draws=abc"], "purifier.draws is 'abc'"),
        (["protocol=paper_ids"], "set purifier.draws=32"),
        (["variants={worst: {}}"], "a defence is called 'worst', which stands for something else"),
        (["variants={purifier: {alpha: linear}}"], "no such key"),
        (["variants={noise: {}}"], "call it otherwise"),
        (["model.checkpoint=null"], "random weights"),
        (["purifier=null"], "a group takes the name of a choice (avae, blur, diffpure, jpeg, mlvgm, ndvae, noise)"),
        (["purifier.draws=0"], "purifier.draws is 0"),
        (["purifier.memory=-1", "purifier.alphas=none"], "purifier.memory is -1"),
        (["purifier.attenuation=high"], "purifier.attenuation is 'high', but must be a number"),
        (["purifier.temperature=warm"], "purifier.temperature is 'warm'"),
        (["evaluation.eps_curve=1.0"], "evaluation.eps_curve"),
        (["evaluation.access=static"], "give a list"),
        (["+attacks.pgd.eps=0.1"], "set threat.eps=0.1 instead"),
        (
            ["+attacks.words={_target_: robustcli.attacks.SynonymTable}"],
            "attacks.words is SynonymTable, which is no attack",
        ),
        (["+attacks.mine={_target_: robustcli.attacks.PDG}"], "attacks.mine._target_ is 'robustcli.attacks.PDG'"),
        (["protocol=paper_ids", "purifier.draws=1"], "set purifier.draws=32"),
        (["variants=[a,b]"], "variants names settings"),
        (["variants={a: null}"], "variants names settings"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("purify", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_of_alphas_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "alphas.json"
    file.write_text('{"alphas": [')
    assert launch("purify", [f"purifier.alphas={file}", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "cannot be read as a list of numbers" in capsys.readouterr().err
