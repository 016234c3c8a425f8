"""`train-generator` as a user runs it, and the weights that were made by it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from robustcli.cli.launch import launch
from robustcli.data import Digits, ImageClassData, SceneClasses
from robustcli.models import Classifier, load
from robustcli.models.generators import NVAE, load_generator

SMALL = [
    "generator.autoencoder.initial_channels=4",
    "generator.autoencoder.num_groups_per_scale=1",
    "moments.temperatures=[0.6]",
    "moments.batches=2",
    "moments.batch_size=8",
    "objective.warmup=10",
    "objective.spectral=0.001",
    "augmentation.shift=1",
    "trainer.max_steps=40",
    "trainer.batch_size=16",
    "trainer.save_minutes=0",
    "trainer.eval_every=20",
    "evaluation.limit=24",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert launch("train-generator", [*SMALL, f"hydra.run.dir={directory}"]) == 0
    return directory


def test_it_learns_and_the_directory_proves_it(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["objective"] == metrics["bits_per_dim"] < 4.0 < math.log2(17)
    assert metrics["train/steps"] == 40 and 0 < metrics["mse"] < 0.15
    history = pd.read_csv(finished / "training.csv")
    assert history["bits_per_dim"].notna().sum() == 2 and history["loss"].iloc[-1] < history["loss"].iloc[0]
    records = pd.read_parquet(finished / "records.parquet")
    parts = [name for name in records if str(name).startswith("latent_")]
    assert len(records) == 24 and len(parts) == 2
    total = records[["likelihood_bits", *parts]].sum(axis=1)
    torch.testing.assert_close(torch.tensor(total), torch.tensor(records["bits_per_dim"]), rtol=1e-5, atol=1e-6)
    pictures = {path.name for path in (finished / "figures").iterdir()}
    assert pictures == {"reconstructions.png", "samples.png", "swept.png"}
    assert all(f"figures/{name}" in (finished / "report.md").read_text() for name in pictures)


def test_the_checkpoint_rebuilds_the_generator_at_its_temperature(finished: Path) -> None:
    saved = finished / "checkpoints" / "last.safetensors"
    model = NVAE.load(saved)
    assert model.levels == 17 and model.resolution == (1, 8, 8) and len(model.latent_shapes) == 2
    assert model.fingerprint() == json.loads((finished / "manifest.json").read_text())["weights"]["after"]


def test_a_training_goes_on_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    saved = finished / "checkpoints" / "last.safetensors"
    small = [word for word in SMALL if not word.startswith("moments.")]
    words = [*small, f"checkpoint={saved}", "trainer.max_steps=0", "augmentation.shift=0"]
    assert launch("train-generator", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    again = NVAE.load(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert again.fingerprint() == NVAE.load(saved).fingerprint()


def test_killed_and_resumed_ends_in_the_same_bits(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*SMALL, f"hydra.run.dir={run}"]
    started = subprocess.Popen([sys.executable, "-m", "robustcli", "train-generator", *words], env={**os.environ})
    deadline = time.monotonic() + 120
    while not (run / "parts" / "state.zip").exists():
        assert started.poll() is None and time.monotonic() < deadline, "it ended before its first state"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (run / "DONE").exists(), "it was through before it could be killed"
    assert launch("train-generator", [f"resume={run}"]) == 0
    name = "checkpoints/last.safetensors"
    assert (run / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=scenes"], "has captions and no classes"),
        (
            ["dataset=scene_classes", "dataset.train=20"],
            "set generator.resolution=[3,32,32]",
        ),
        (["generator.autoencoder.num_scales=5"], "is not divisible by"),
        (["objective.beta=-1"], "objective.beta is -1"),
        (["moments.temperatures=[0.8]"], "which moments.temperatures [0.8] lacks"),
        (["trainer.batch_size=2000"], "trainer.batch_size is 2000"),
    ],
)
def test_mistakes_come_before_the_first_step(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("train-generator", ["trainer=smoke", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "data", "lost", "size"),
    [("digits", Digits(split="test"), 0.03, 1_200_000), ("scene_classes", None, 0.10, 4_500_000)],
)
@torch.no_grad()
def test_images_pass_the_shipped_generators(name: str, data: ImageClassData | None, lost: float, size: int) -> None:
    """Half of the linear schedule is what a classifier must bear."""
    found = data or SceneClasses(split="test", test=200)
    classifier, generator = load(name), load_generator("shipped", shipped_for=name)
    assert isinstance(classifier, Classifier)
    rows = torch.arange(200)
    images, labels, number = found.images(rows), found.labels[rows], len(generator.latent_shapes)
    source = torch.Generator().manual_seed(0)
    noise = [torch.randn(len(rows), *shape, generator=source) for shape in generator.latent_shapes]
    purified = generator.decode(generator.encode(images), 0.5 * torch.arange(1, number + 1) / number, noise)
    bare, behind = (float((classifier(each).argmax(1) == labels).float().mean()) for each in (images, purified))
    assert behind >= bare - lost
    shipped = Path(sys.modules["robustcli"].__file__ or "").parent / "assets" / f"nvae_{name}.safetensors"
    assert shipped.stat().st_size <= size
