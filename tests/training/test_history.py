"""The history of a training as it is written, and what is refused before it begins."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from robustcli.runs.run import Run
from robustcli.training.history import check_tensorboard, write_history
from robustcli.training.trainer import Training
from robustcli.utils.errors import UserError


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


def test_tensorboard_that_is_not_there_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tensorboard(False)
    with pytest.raises(UserError, match="pip install 'robustcli\\[tracking\\]'"):
        check_tensorboard(True)
