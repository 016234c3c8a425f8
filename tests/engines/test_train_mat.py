"""`train-mat`, `evaluate` and `attack` as a user runs them, on a few dozen scenes and a model without training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robustcli.cli.launch import launch
from robustcli.training.group import Group
from robustcli.training.state import Saved

SMALL = [
    "model.checkpoint=null",
    "dataset.train=96",
    "dataset.val=24",
    "dataset.test=24",
    "trainer.batch_size=32",
    "trainer.save_minutes=0",
    "evaluation.resamples=50",
    "evaluation.eps_curve=[0, 1]",
    "attacks=quick",
    "diagnostics=off",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    os.environ.setdefault("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    assert launch("train-mat", [*SMALL, "trainer.max_steps=6", f"hydra.run.dir={directory}"]) == 0
    return directory


def metrics(directory: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((directory / "metrics.json").read_text())
    return found


def test_the_directory_holds_all_that_proves_the_run(finished: Path) -> None:
    for name in (
        "config.yaml",
        "overrides.yaml",
        "manifest.json",
        "metrics.csv",
        "records.parquet",
        "report.md",
        "log.txt",
        "DONE",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert {path.name for path in (finished / "figures").iterdir()} >= {
        "recall_over_eps.png",
        "examples_before.png",
        "examples_after.png",
    }
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["data"]) == {"train", "val", "test"} and set(manifest["weights"]) == {"before", "after"}
    assert manifest["weights"]["before"] != manifest["weights"]["after"]
    assert not (finished / "parts").exists(), "what a resume needs is gone once the run is done"


def test_every_figure_is_an_aggregation_of_the_records(finished: Path) -> None:
    records, found = pd.read_parquet(finished / "records.parquet"), metrics(finished)
    records = records[records["eps"] != 0]  # what the curve alone asked for
    for (model, attack, direction), rows in records.groupby(["model", "attack", "direction"]):
        rank = rows["adversarial_rank"].fillna(rows["clean_rank"])
        assert found[f"{model}/{attack}/{direction}/recall_at_1"] == pytest.approx((rank <= 1).mean(), abs=1e-12)
        assert found[f"{model}/{attack}/{direction}/queries"] == len(rows)
    judged = records[records["model"] == "after"]
    worst = judged.groupby(["direction", "query_id"])["adversarial_rank"].max()  # each query under what hurts it most
    hits = (worst <= 1).groupby("direction").mean()
    assert found["objective"] == pytest.approx(hits.mean(), abs=1e-12)
    assert found["after/worst/image_to_text/recall_at_1"] == pytest.approx(hits["image_to_text"], abs=1e-12)
    for attack in ("pgd", "words", "sep"):
        assert hits["text_to_image"] <= found[f"after/{attack}/text_to_image/recall_at_1"]


def test_the_curve_at_the_budget_is_its_judge_and_at_zero_the_words_alone(finished: Path) -> None:
    records = pd.read_parquet(finished / "records.parquet")
    keys = ["attack", "eps", "direction", "query_id"]
    after = records[records["model"] == "after"].set_index(keys)["adversarial_rank"].sort_index()
    assert after.loc["sep", 0.0].equals(after.loc["words"].droplevel("eps"))
    found = metrics(finished)
    for direction in ("image_to_text", "text_to_image"):
        for point, name in (("sep@0.015686", "sep"), ("sep@0", "words")):
            assert found[f"after/{point}/{direction}/recall_at_1"] == found[f"after/{name}/{direction}/recall_at_1"]


def test_budgets_hold_on_the_records(finished: Path) -> None:
    records = pd.read_parquet(finished / "records.parquet")
    assert records["norm"].max() <= 4 / 255 * (1 + 1e-6)
    assert records["edits"].max() == 1


def test_killed_and_resumed_ends_in_the_same_weights_and_numbers(finished: Path, tmp_path: Path) -> None:
    """SIGKILL while it trains: nothing could be tidied up, and still the resumed run is the whole one, bit by bit."""
    directory = tmp_path / "cut"
    argv = [sys.executable, "-m", "robustcli", "train-mat", *SMALL, "trainer.max_steps=6", f"hydra.run.dir={directory}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = directory / "parts" / "state.zip"
    for _ in range(6000):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = Saved(state, Group())["step"]
    assert not (directory / "DONE").exists() and 1 <= step <= 6
    assert launch("train-mat", [f"resume={directory}"]) == 0
    whole, resumed = (load_file(d / "checkpoints" / "last.safetensors") for d in (finished, directory))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert metrics(directory) == metrics(finished)
    assert json.loads((directory / "manifest.json").read_text())["sessions"][0]["status"] == "killed"


def test_evaluate_judges_several_checkpoints_in_one_table(finished: Path, tmp_path: Path) -> None:
    weights = finished / "checkpoints" / "last.safetensors"
    directory = tmp_path / "evaluation"
    both = f"checkpoints={{a: {weights}, b: {weights}}}"
    small = [word for word in SMALL if not word.startswith("trainer") and not word.startswith("model")]
    assert launch("evaluate", [*small, both, f"hydra.run.dir={directory}"]) == 0
    found = metrics(directory)
    assert found["a/sep/image_to_text/recall_at_1"] == found["b/sep/image_to_text/recall_at_1"]
    assert found["a/sep/image_to_text/recall_at_1"] == metrics(finished)["after/sep/image_to_text/recall_at_1"]


def test_attack_keeps_float_images_within_the_budget(finished: Path, tmp_path: Path) -> None:
    from robustcli.data import Scenes

    directory = tmp_path / "attack"
    small = [word for word in SMALL if not word.startswith(("trainer", "model", "attacks"))]
    weights = f"checkpoint={finished / 'checkpoints' / 'last.safetensors'}"
    code = launch("attack", [*small, weights, "attack=sep", "evaluation.eps_curve=[]", f"hydra.run.dir={directory}"])
    assert code == 0
    images = load_file(directory / "adversarial" / "images-000000.safetensors")["images"]
    clean = Scenes(split="test", train=96, val=24, test=24).images(torch.arange(24))
    moved = (images.double() - clean.double()).abs().amax()
    assert images.dtype == torch.float32 and 0 < float(moved) <= 4 / 255 * (1 + 1e-6)


def test_a_checkpoint_of_another_model_is_refused_before_any_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "checkpoints" / "last.safetensors"
    code = launch(
        "evaluate",
        ["model=open_clip", "model.architecture=ViT-B-32", f"checkpoint={weights}", f"hydra.run.dir={tmp_path / 'x'}"],
    )
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
