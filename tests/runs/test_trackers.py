"""Trackers: what is told of a run to TensorBoard, MLflow and Weights & Biases, and that none of them can lose it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from robustcli.cli.launch import launch
from robustcli.runs import trackers
from robustcli.runs.run import Run
from robustcli.runs.trackers import Trackers, tracker_names
from robustcli.utils.errors import UserError

WORDS = ["train-classifier", "dataset=digits", "model=digits", "trainer=smoke", "trainer.batch_size=8", "attacks=none"]
WORDS += ["+attack@attacks.fgsm=fgsm", "evaluation=smoke", "evaluation.limit=8", "evaluation.before=false"]
WORDS += ["evaluation.eps_curve=[0,1]", "diagnostics=off"]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@needs("tensorboard")
@needs("mlflow")
def test_curves_of_training_and_attacks_and_the_final_numbers_are_there(tmp_path: Path) -> None:
    assert launch(WORDS[0], [*WORDS[1:], "tracker=[tensorboard,mlflow]", "hydra.run.dir=run"]) == 0
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3]
    curve = board.Scalars("curve/after/adaptive/fgsm/image_to_class/recall_at_1")
    assert [event.step for event in curve] == [0, 16]  # thousandths of the pixel range
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("robustcli").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["trainer.batch_size"] == "8"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 3
    assert run.data.metrics["after/clean/image_to_class/recall_at_1"] >= 0
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["report.html"]


@needs("mlflow")
def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    for last in (False, True):
        run = Run.open("evaluate", {"seed": 0}, tmp_path / "run", [])
        try:
            with run:
                run.track("mlflow", {"seed": 0})
                run.trackers.scalars(1 + last, {"loss [x]": 0.5})
                if not last:
                    raise KeyboardInterrupt
                run.finish(0.25)
        except KeyboardInterrupt:
            pass
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("robustcli").experiment_id])
    steps = [point.step for point in client.get_metric_history(found.info.run_id, "loss _x_")]
    assert steps == [1, 2] and found.info.status == "FINISHED" and found.data.metrics["objective"] == 0.25


@needs("wandb")
def test_weights_and_biases_writes_to_the_run_directory_and_sends_nothing(tmp_path: Path) -> None:
    with Run.open("evaluate", {"seed": 0}, tmp_path / "run", []) as run:
        run.track("wandb", {"seed": 0})
        run.trackers.scalars(1, {"loss": 0.5})
        run.trackers.scalars(16, {"curve/a": 0.5})
        run.finish(0.25)
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert run.manifest["trackers"]["wandb"] in offline.name and list(offline.glob("*.wandb"))


class Broken:
    """A tracker whose server is away."""

    run = "broken"

    def __init__(self, *_: Any) -> None:
        self.calls = 0

    def scalars(self, step: int, figures: Any) -> None:
        self.calls += 1
        raise ConnectionError("the server is away")

    def close(self, metrics: Any, report: Any) -> None:
        raise AssertionError("it was dropped")


def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = Broken()
    both = Trackers({"wandb": broken})
    both.scalars(1, {"loss": 1.0})
    both.scalars(2, {"loss": 1.0})
    both.close({}, None)
    assert broken.calls == 1 and "tracker wandb failed and is left out from here on" in caplog.text

    def refuse(*_: Any) -> Any:
        raise OSError("no room\nat all")

    monkeypatch.setattr(trackers, "tracker_names", lambda asked: [asked])
    monkeypatch.setattr("robustcli.runs.run.tracker_names", lambda asked: [asked])
    monkeypatch.setitem(trackers._OPEN, "mlflow", refuse)  # type: ignore[index]
    with Run.open("evaluate", {"seed": 0}, tmp_path / "run", []) as run:
        run.track("mlflow", {"seed": 0})
        run.finish(0.0)
    assert (tmp_path / "run" / "DONE").exists() and run.manifest["trackers"] == {}
    assert capsys.readouterr().out == "tracker mlflow cannot be used and is left out: no room\n"


def test_a_tracker_that_is_unknown_or_not_installed_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tracker_names(None) == []
    with pytest.raises(UserError, match="tracker is 3: choose of"):
        tracker_names(3)
    assert launch(WORDS[0], [*WORDS[1:], "tracker=mlfow", "hydra.run.dir=run"]) == 2
    assert "tracker is 'mlfow': did you mean 'mlflow'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracker=wandb needs the package wandb: pip install 'robustcli\\[tracking\\]'"):
        tracker_names(["wandb"])
