"""The history of a training as it is written, and what is refused before it begins."""

from pathlib import Path

import pandas as pd

from robustcli.runs.run import Run
from robustcli.training.history import write_history
from robustcli.training.trainer import Training


def test_the_file_has_a_row_a_look_and_the_metrics_are_its_last(tmp_path: Path) -> None:
    rows = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0, "accuracy": 0.5}]
    with Run.open("train-classifier", {"seed": 0}, tmp_path / "run", []) as run:
        assert write_history(run, Training(20, history=rows)) == {
            "train/steps": 20.0,
            "train/loss": 1.0,
            "train/accuracy": 0.5,
        }
        assert write_history(run, Training(0)) == {"train/steps": 0.0}, "no step was made"
        write_history(run, Training(20, history=rows))
    found = pd.read_csv(tmp_path / "run" / "training.csv")
    assert list(found["step"]) == [10, 20] and found["accuracy"].isna().tolist() == [True, False]
