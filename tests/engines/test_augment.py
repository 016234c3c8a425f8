"""`robustcli augment` and a training that mixes in what it made, as a user runs them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from robustcli.cli.launch import launch
from robustcli.data.augment import read_pairs

FEW = ["dataset.train=32", "device=cpu"]
TRAINING = [
    *FEW,
    "dataset.val=8",
    "dataset.test=8",
    "trainer.max_steps=2",
    "trainer.batch_size=8",
    "attacks=none",
    "diagnostics=off",
    "evaluation.before=false",
]


@pytest.fixture(scope="module")
def paraphrases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("augment") / "paraphrase"
    assert launch("augment", [*FEW, "shard=8", f"hydra.run.dir={place}"]) == 0
    return place


def test_it_writes_shards_with_the_provenance_of_each_pair(paraphrases: Path) -> None:
    shards = sorted((paraphrases / "pairs").glob("*.parquet"))
    assert [shard.name for shard in shards] == [f"pairs-{first:07d}.parquet" for first in (0, 8, 16, 24)]
    table = pd.concat(map(pd.read_parquet, shards))
    assert {"source", "caption", "image", "true", "method", "parameters", "seed", "model", "model_sha256"} <= set(table)
    assert set(table["method"]) == {"paraphrase"} and json.loads(table["parameters"].iloc[0])["number"] == 5
    metrics = json.loads((paraphrases / "metrics.json").read_text())
    assert metrics["pairs"] == metrics["captions"] == len(table) and metrics["true_share"] == 1
    assert "Augmentation of scenes by paraphrase" in (paraphrases / "report.md").read_text()


def test_a_stopped_run_goes_on_to_the_same_shards(paraphrases: Path, tmp_path: Path) -> None:
    place = tmp_path / "stopped"
    assert launch("augment", [*FEW, "shard=8", f"hydra.run.dir={place}"]) == 0
    for name in ("DONE", "pairs/pairs-0000008.parquet", "pairs/pairs-0000024.parquet"):  # as a kill would leave it
        (place / name).unlink()
    kept = (place / "pairs" / "pairs-0000000.parquet").stat().st_mtime_ns
    assert launch("augment", [f"resume={place}"]) == 0
    assert (place / "pairs" / "pairs-0000000.parquet").stat().st_mtime_ns == kept
    assert read_pairs(place) == [pair for pair in read_pairs(paraphrases)], (
        "the same pairs, whichever session made them"
    )


@pytest.mark.parametrize("pairing", [[], ["pairing=append"], ["pairing=group", "defense.positives=soft"]])
def test_a_training_mixes_them_in(paraphrases: Path, tmp_path: Path, pairing: list[str]) -> None:
    words = [*TRAINING, *pairing, f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("train-mat", [*words, f"dataset.augmentations=[{paraphrases}]"]) == 0
    mixed = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert launch("train-mat", [*words[:-1], f"hydra.run.dir={tmp_path / 'plain'}"]) == 0
    plain = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert mixed["data"]["train"]["fingerprint"] != plain["data"]["train"]["fingerprint"]
    assert mixed["data"]["val"] == plain["data"]["val"]
    if pairing:
        assert mixed["weights"]["after"] != plain["weights"]["after"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.augmentations=[nowhere]"], "no directory of `robustcli augment`"),
        (["dataset.augmentations=nowhere"], "nowhere is no directory of `robustcli augment`"),
        (["dataset.augmentations=[null]"], "dataset.augmentations has null"),
        (["dataset.augmentations=true"], "dataset.augmentations"),
        (["dataset.augmentations=[3]"], "dataset.augmentations has 3"),
        (["dataset.captions_per_image=0"], "captions_per_image"),
        (["dataset.augmented_per_image=2"], "names no augmented pairs"),
        (["pairing.share=.5"], "names no augmented pairs"),
        (["pairing=group", "defense.positives=diagonal"], "put captions of one image into a batch"),
        (["pairing=group", "pairing.pairs=3"], "groups of 3 pairs"),
        (["evaluation.split=train", "dataset.captions_per_image=1"], "judges the whole training set"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("train-mat", [*TRAINING, *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_directory_is_mixed_in_without_brackets_and_refused_twice(
    paraphrases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TRAINING, f"hydra.run.dir={tmp_path / 'run'}"]
    assert (
        launch("train-mat", [*words, f"dataset.augmentations=[{paraphrases},{paraphrases.parent}/./paraphrase]"]) == 2
    )
    assert "twice" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert launch("train-mat", [*words, f"dataset.augmentations={paraphrases}"]) == 0
    assert "augmented pairs stand beside" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "shown"), [("0", "0"), ("1.5", "1.5"), ("two", "'two'"), ("true", "True")])
def test_a_number_of_pairs_is_a_whole_one(
    paraphrases: Path, number: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TRAINING, f"dataset.augmentations=[{paraphrases}]", f"dataset.augmented_per_image={number}"]
    assert launch("train-mat", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert f"dataset.augmented_per_image is {shown}" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_augmented_pairs_of_another_set_are_refused(
    paraphrases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TRAINING, f"dataset.augmentations=[{paraphrases}]", "dataset.contrast=0.5"]
    assert launch("train-mat", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "was made for another set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment.number=0"], "augment.number is 0"),
        (["augment.misaligned=2"], "augment.misaligned is 2"),
        (["augment.shift.words=-1"], "augment.shift.words is -1"),
        (["augment=captions"], "captions_per_image"),
        (["dataset=digits"], "no captions"),
        (["checkpoint=x.pt"], "nothing would read it"),
    ],
)
def test_a_method_that_cannot_work_is_refused_before_work(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [] if words[0] == "dataset=digits" else FEW
    assert launch("augment", [*train, *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
