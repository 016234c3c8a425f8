"""`train-classifier` as a user runs it, and the weights that were made by it."""

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

from robustcli.attacks import PGD
from robustcli.cli.launch import launch
from robustcli.data import Digits, ImageClassData, SceneClasses
from robustcli.models import Classifier, load, restore

SMALL = [
    "dataset=digits",
    "model=digits",
    "model.checkpoint=null",
    "model.widths=[8,16]",
    "augmentation.shift=1",
    "trainer.batch_size=32",
    "trainer.lr=0.01",
    "trainer.save_minutes=0",
    "trainer.eval_every=40",
    "evaluation.resamples=20",
    "evaluation.limit=100",
    "diagnostics=off",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert launch("train-classifier", [*SMALL, "trainer.max_steps=80", f"hydra.run.dir={directory}"]) == 0
    return directory


def test_it_learns_and_the_directory_proves_it(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    accuracy = metrics["after/clean/image_to_class/recall_at_1"]
    assert accuracy > 0.5 and metrics["train/steps"] == 80
    assert metrics["objective"] == metrics["after/worst/image_to_class/recall_at_1"] < accuracy, "judged under attack"
    history = pd.read_csv(finished / "training.csv")
    assert history["accuracy"].notna().sum() == 2 and history["loss"].iloc[-1] < history["loss"].iloc[0]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["weights"]["before"] != manifest["weights"]["after"] and manifest["data"]["test"]["classes"] == 10


def test_the_weights_rebuild_the_model_and_its_accuracy(finished: Path) -> None:
    model = restore(finished / "checkpoints" / "last.safetensors")
    assert isinstance(model, Classifier) and model.classes == tuple("0123456789")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert accuracy(model, Digits(split="test"), 100) == metrics["after/clean/image_to_class/recall_at_1"]
    assert model.fingerprint() == json.loads((finished / "manifest.json").read_text())["weights"]["after"]


def test_killed_and_resumed_ends_in_the_same_bits(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "trainer.max_steps=80", f"hydra.run.dir={run}"]
    started = subprocess.Popen([sys.executable, "-m", "robustcli", "train-classifier", *words], env={**os.environ})
    deadline = time.monotonic() + 120
    while not (run / "parts" / "state.zip").exists():
        assert started.poll() is None and time.monotonic() < deadline, "it ended before its first state"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (run / "DONE").exists(), "it was through before it could be killed"
    assert launch("train-classifier", [f"resume={run}"]) == 0
    name = "checkpoints/last.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=scenes"], "has captions and no classes"),
        (["model=tiny", "dataset=digits"], "model.vocabulary is empty"),
        (["model=resnet20_cifar", "dataset=digits"], "the model knows the classes airplane"),
        (["trainer.batch_size=2000", "dataset=digits"], "trainer.batch_size is 2000"),
        (["objective.label_smoothing=1", "dataset=digits"], "objective.label_smoothing is 1"),
        (["objective=pgd_at", "attack=mat", "dataset=digits"], "edits captions"),
        (["attack=pgd", "dataset=digits"], "objective=standard trains against no attack"),
        (["objective=pgd_at", "attack=deepfool", "dataset=digits"], "objective=pgd_at trains within norm and eps"),
        (["objective=trades", "threat.eps=0", "dataset=digits"], "objective=trades trains within threat.eps"),
        (["trainer.optimizer=rmsprop", "dataset=digits"], "trainer.optimizer is 'rmsprop'"),
        (["augmentation.contrast=2", "dataset=digits"], "augmentation.contrast is 2"),
    ],
)
def test_mistakes_come_before_the_first_step(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("train-classifier", ["trainer=smoke", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("objective", ["pgd_at", "trades"])
def test_robust_training_costs_little_and_helps_under_attack(objective: str, finished: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"objective={objective}", "threat.eps=19/255"]
    words += ["attack.steps=4"] if objective == "pgd_at" else []
    assert launch("train-classifier", [*words, "trainer.max_steps=80", f"hydra.run.dir={tmp_path}"]) == 0
    attack, data, rows = PGD(eps="19/255", steps=10), Digits(split="test"), torch.arange(100)
    standing = {}
    for name, directory in (("robust", tmp_path), ("standard", finished)):
        model = restore(directory / "checkpoints" / "last.safetensors")
        assert isinstance(model, Classifier)
        standing[name] = int((~attack(model, data.images(rows), data.labels[rows]).success).sum())
    assert standing["robust"] > standing["standard"] + 5, standing
    assert json.loads((tmp_path / "metrics.json").read_text())["after/clean/image_to_class/recall_at_1"] > 0.5


def test_the_papers_augmentation_and_sgd_run_and_are_written_down(tmp_path: Path) -> None:
    words = ["trainer=smoke", "trainer.optimizer=sgd", "augmentation=purification_paper", "model.widths=[8]"]
    words += ["dataset=digits", "model=digits", "evaluation=smoke", f"hydra.run.dir={tmp_path}"]
    assert launch("train-classifier", words) == 0
    written = (tmp_path / "config.yaml").read_text()
    assert "optimizer: sgd" in written and "crop_scale: 0.75" in written


@pytest.mark.parametrize(
    ("name", "data", "least"),
    [("digits", Digits(split="test"), 0.97), ("scene_classes", None, 0.98)],
)
def test_the_shipped_weights_score_what_they_should(name: str, data: ImageClassData | None, least: float) -> None:
    model = load(name)
    assert isinstance(model, Classifier)
    found = data or SceneClasses(split="test", test=300)
    assert model.classes == found.classes
    assert accuracy(model, found, len(found)) >= least
    shipped = Path(sys.modules["robustcli"].__file__ or "").parent / "assets" / f"tiny_{name}.safetensors"
    assert shipped.stat().st_size < 400_000


@torch.no_grad()
def accuracy(model: Classifier, data: ImageClassData, limit: int) -> float:
    rows = torch.arange(limit)
    return int((model(data.images(rows)).argmax(1) == data.labels[rows]).sum()) / limit
