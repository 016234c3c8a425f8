"""``augment-quality``: one table over directories of ``augment``, its prediction, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.cli.launch import launch
from robustcli.evaluation.augmentation import QualityEvaluator
from robustcli.report.augment_quality import Rule, predicted

SCENES = ["dataset.train=40"]
FEW = ["resamples=50"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("made")
    words = {
        "right": ["augment=paraphrase"],
        "wrong": ["augment=paraphrase", "augment.misaligned=.5"],
        "images": ["augment=redraw", "augment.number=2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(place / "cache"))
        for name, each in words.items():
            assert launch("augment", [*SCENES, *each, f"hydra.run.dir={place / name}"]) == 0
    return {name: place / name for name in words}


def measured(made: dict[str, Path], place: Path, *words: str) -> pd.DataFrame:
    named = ", ".join(f"{name}: {path}" for name, path in made.items())
    told = [*SCENES, *FEW, f"dataset.augmentations={{{named}}}", *words, f"hydra.run.dir={place}"]
    assert launch("augment-quality", told) == 0
    return pd.read_csv(place / "metrics.csv").set_index("augmentation")


def test_one_table_over_all_directories(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = measured(made, tmp_path / "run")
    assert table["side"].to_dict() == {"right": "captions", "wrong": "captions", "images": "images"}
    assert table.loc["wrong", "alignment"] < table.loc["right", "alignment"]
    assert table["predicted"].str.startswith("no:").to_dict() == {"right": False, "wrong": True, "images": False}
    shown = capsys.readouterr().out
    report = (tmp_path / "run" / "report.md").read_text()
    for text in (shown, report):
        assert "no: alignment" in text and "not verified" in text and "shipped model" in text
    assert "| right |" in report and "(figures/quality.png)" in report and "NOT MADE" not in report
    records = pd.read_parquet(tmp_path / "run" / "records.parquet")
    assert records.groupby("augmentation")["alignment"].size().to_dict() == table["pairs"].to_dict()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["right/captions/alignment"] == pytest.approx(table.loc["right", "alignment"])
    assert metrics["objective"] == 2
    prediction = json.loads((tmp_path / "run" / "prediction.json").read_text())
    assert {each["augmentation"] for each in prediction["order"][:2]} == {"right", "images"}
    assert [each["gain"] for each in prediction["order"]] == [True, True, False]
    assert prediction["date"].startswith("20") and prediction["verified"] is False


def test_labels_tell_the_method_and_the_parameters_that_differ(made: dict[str, Path], tmp_path: Path) -> None:
    named = f"dataset.augmentations=[{made['right']},{made['wrong']}]"
    words = [*SCENES, *FEW, named, "dataset.augmented_per_image=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("augment-quality", words) == 0
    table = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert table["augmentation"].tolist() == ["paraphrase misaligned=0.0", "paraphrase misaligned=0.5"]
    assert table["per_item"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "names no directory"),
        (["dataset.train=41", "dataset.augmentations=[{right}]"], "made for another set"),
        (["dataset.captions_per_image=1", "dataset.augmentations=[{right}]"], "made for another set"),
        (["dataset.augmentations=[{right}/none]"], "no directory of `robustcli augment`"),
        (["dataset=digits", "dataset.augmentations=[{right}]"], "classes and no captions"),
        (["dataset.augmentations=[{right}]", "checkpoint=a.safetensors"], "nothing would read it"),
        (["dataset.augmentations=[{right}]", "model@reference=digits"], "is a classifier"),
        (["dataset.augmentations=[{right}]", "reference.checkpoint=null"], "judge with reference.checkpoint=FILE"),
    ],
)
def test_mistakes_are_one_sentence(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    size = [] if any("dataset.train" in word or "dataset=" in word for word in words) else SCENES
    told = [*size, *(word.replace("{right}", str(made["right"])) for word in words)]
    assert launch("augment-quality", [*told, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_killed_run_goes_on_to_the_same_figures(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(made, tmp_path / "whole")
    measure, calls = QualityEvaluator.measure, []

    def stopped(self: Any, augmented: Any) -> Any:
        calls.append(augmented)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, augmented)

    named = ", ".join(f"{name}: {path}" for name, path in made.items())
    words = [*SCENES, *FEW, f"dataset.augmentations={{{named}}}", f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr(QualityEvaluator, "measure", stopped)
    assert launch("augment-quality", words) != 0
    assert launch("augment-quality", [f"resume={tmp_path / 'run'}"]) == 0
    assert len(calls) == 4, "the first directory is not measured again"
    pd.testing.assert_frame_equal(whole, pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("augmentation"))


def test_the_order_of_the_prediction() -> None:
    rows = [
        {"name": "far", "alignment_ratio": 1.0, "gap": 0.9, "diversity_ratio": 0.9},
        {"name": "dull", "alignment_ratio": 1.0, "gap": 0.1, "diversity_ratio": 0.1},
        {"name": "good", "alignment_ratio": 0.95, "gap": 0.1, "diversity_ratio": 0.5},
        {"name": "wrong", "alignment_ratio": 0.5, "gap": float("nan"), "diversity_ratio": 0.9},
    ]
    table = predicted(pd.DataFrame(rows), Rule(alignment=0.9, gap=0.25)).set_index("name")
    assert table["predicted"].to_dict() == {
        "far": "no: gap",
        "dull": "2",
        "good": "1",
        "wrong": "no: alignment and gap",
    }
    assert table["rank"].to_dict() == {"good": 1, "dull": 2, "far": 3, "wrong": 4}
