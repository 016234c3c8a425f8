"""The trainers as a config asks for them: within which threat model they attack, and the recipe of a default."""

from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.attacks import EmbeddingNeighbours
from robustcli.builders.data import build_captioned, build_classes, build_training_pairs
from robustcli.builders.training import build_class_trainer, build_pair_trainer
from robustcli.cli.launch import launch
from robustcli.config.compose import compose
from robustcli.training.tasks import ClassTask, PairTask

FEW = ["dataset.train=64", "dataset.val=16", "dataset.test=16", "model.checkpoint=null"]


@pytest.mark.parametrize("defense", ["mat", "image", "fare", "mmcoa"])
def test_the_pairs_are_attacked_at_the_scaled_radius_of_the_threat_model(defense: str) -> None:
    words = [*FEW, f"defense={defense}", "threat.eps=2/255", "trainer.eps_scale=3", "attacks=none"]
    config: Any = compose("train-mat", words)
    sets = {split: build_captioned(config.dataset, split) for split in ("train", "val")}
    task = build_pair_trainer(config, sets, torch.device("cpu"))[0].task
    assert isinstance(task, PairTask)
    assert task.threat.radius == pytest.approx(6 / 255)
    assert task.threat.words == config.threat.words == 1


def test_the_words_of_the_judging_attacks_do_not_hang_on_the_captions_of_a_training() -> None:
    """Two trainings that differ in their captions are judged by one attack."""
    neighbours = []
    for number in (None, 1):
        words = [*FEW, "candidates=neighbours", f"dataset.captions_per_image={'null' if number is None else number}"]
        config: Any = compose("train-mat", words)
        sets = {"train": build_training_pairs(config.dataset, "train"), "val": build_captioned(config.dataset, "val")}
        source = build_pair_trainer(config, sets, torch.device("cpu"))[1]()
        assert isinstance(source, EmbeddingNeighbours)
        neighbours.append(source.words)
    assert neighbours[0] == neighbours[1]


def test_a_classifier_is_attacked_at_the_scaled_radius_too() -> None:
    words = ["dataset=digits", "objective=pgd_at", "threat.eps=2/255", "trainer.eps_scale=1.5"]
    config: Any = compose("train-classifier", words)
    sets = {split: build_classes(config.dataset, split) for split in ("train", "val")}
    task = build_class_trainer(config, sets, torch.device("cpu")).task
    assert isinstance(task, ClassTask) and task.threat.radius == pytest.approx(3 / 255)


def test_the_radius_is_that_of_the_threat_model_unless_a_training_asks_for_another() -> None:
    scale = {name: compose("train-mat", [f"trainer={name}"]).trainer.eps_scale for name in ("pairs", "default", "long")}
    assert scale == {"pairs": 1.5, "default": 1.0, "long": 1.0}
    recipe = compose("train-mat", ["experiment=train_mat/mat_clip_paper_unverified"])
    assert recipe.trainer.eps_scale == 1.0 and recipe.threat.eps == "2/255", "a larger radius is ours, not the paper's"


@pytest.mark.parametrize("scale", ["0", "inf", "1e9"])
def test_a_scale_that_gives_no_radius_is_told_by_its_own_key(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("train-mat", [*FEW, f"trainer.eps_scale={scale}", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "error: trainer.eps_scale is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train-mat", ["defense=clean"]),
        ("train-mat", ["defense=text"]),
        ("train-classifier", ["dataset=digits"]),
        ("train-generator", ["dataset=digits"]),
    ],
)
def test_a_radius_that_no_attack_of_the_training_reads_is_refused(
    command: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(command, [*words, "trainer.eps_scale=2", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "trainer.eps_scale=2: nothing would read it" in " ".join(capsys.readouterr().err.split())
