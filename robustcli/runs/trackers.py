"""Trackers of experiments that a run also writes to: TensorBoard, MLflow, Weights & Biases.

The run directory stays the truth: a tracker that fails is told of and dropped, and never ends a run. None of them sends
anything anywhere unless it is asked to by its own environment variables (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``).
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from robustcli.utils.errors import UserError
from robustcli.utils.flatten import flatten
from robustcli.utils.stops import stop_code
from robustcli.utils.suggest import did_you_mean

log = logging.getLogger(__name__)
# Where each is from: MLflow is no extra of ours, since torchattacks asks for a version of requests from before its own.
_SOURCES: Mapping[str, str] = {
    "tensorboard": "'robustcli[tracking]'",
    "mlflow": "mlflow-skinny",
    "wandb": "'robustcli[tracking]'",
}
_LONGEST = 500  # letters of a parameter, of which MLflow takes no more
_PROJECT = "robustcli"


class Tracker(Protocol):
    """Receiver of the numbers of a run; ``run`` is its name there."""

    run: str

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        """Points of curves."""

    def close(self, metrics: Mapping[str, float], report: Path | None) -> None:
        """The final numbers, and the report of a run that is done."""


class Trackers:
    """All trackers of a run; one that raises is dropped with a warning.

    Args:
        opened: by name.
    """

    def __init__(self, opened: Mapping[str, Tracker] | None = None) -> None:
        self._opened = dict(opened or {})

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        """Points of curves: figure -> value at ``step``."""
        self._each(lambda tracker: tracker.scalars(step, figures))

    def close(self, metrics: Mapping[str, float], report: Path | None) -> None:
        """Write the final numbers and end; without numbers and report where the run was stopped."""
        self._each(lambda tracker: tracker.close(metrics, report))
        self._opened.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._opened.items()):
            try:
                call(tracker)
            except Exception as error:  # of another project, over a disk or a network: the run does not depend on it
                if stop_code(error):
                    raise
                log.warning("tracker %s failed and is left out from here on: %s: %s", name, type(error).__name__, error)
                del self._opened[name]


def tracker_names(asked: Any) -> list[str]:
    """The names in ``tracker``, checked before any work.

    Args:
        asked: None, a name, or a list of names.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    several = isinstance(asked, Sequence) and not isinstance(asked, str)
    names = [] if asked is None else list(asked) if several else [asked]
    for name in names:
        if name not in _SOURCES:
            near = did_you_mean(str(name), list(_SOURCES))
            raise UserError(f"tracker is {name!r}{near}: choose of {', '.join(_SOURCES)}, one or a list, or null.")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker={name} needs the package {name}: pip install {_SOURCES[name]}.")
    return names


def open_trackers(
    names: Sequence[str], directory: Path, config: Mapping[str, Any], known: Mapping[str, str]
) -> tuple[Trackers, dict[str, str]]:
    """The trackers of a run, and the id that each has given to it.

    Args:
        directory: of the run; its last two parts are the name of it.
        config: the composed one, which becomes the parameters.
        known: ids of an earlier session of the same run, which go on.
    """
    opened: dict[str, Tracker] = {}
    settings = {key: str(value)[:_LONGEST] for key, value in flatten(config).items()}
    for name in names:
        try:
            opened[name] = _OPEN[name](directory, settings, known.get(name))
        except Exception as error:  # see `Trackers`
            if stop_code(error):
                raise
            log.warning("tracker %s cannot be used and is left out: %s: %s", name, type(error).__name__, error)
            first = (str(error).splitlines() or [""])[0]
            print(f"tracker {name} cannot be used and is left out: {first}", flush=True)
    return Trackers(opened), {name: tracker.run for name, tracker in opened.items()}


class _TensorBoard:
    """Event files in ``tensorboard/`` of the run."""

    run = "tensorboard"

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(directory / "tensorboard"))

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def close(self, metrics: Mapping[str, float], report: Path | None) -> None:
        self.scalars(0, {f"final/{name}": value for name, value in metrics.items()})
        self._board.close()


class _MLflow:
    """A run of MLflow, in ``mlruns/`` of the working folder unless ``MLFLOW_TRACKING_URI`` says another place."""

    def __init__(self, directory: Path, settings: Mapping[str, str], known: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:  # MLflow 3 opens a folder only where it is told that one is meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            place = (Path.cwd() / "mlruns").as_uri()
        self._client: Any = MlflowClient(place)
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            tags = {"directory": str(directory)}
            self.run: str = self._client.create_run(experiment, run_name=_title(directory), tags=tags).info.run_id
            params = [Param(key, value) for key, value in settings.items()]
            for start in range(0, len(params), 100):  # the most of a call
                self._client.log_batch(self.run, params=params[start : start + 100])
        else:
            self.run = known
            self._client.update_run(known, status="RUNNING")

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.run, _spelled(name), value, step=step)

    def close(self, metrics: Mapping[str, float], report: Path | None) -> None:
        self.scalars(0, metrics)
        if report is not None:
            self._client.log_artifact(self.run, str(report))
        self._client.set_terminated(self.run, "FINISHED" if metrics else "KILLED")


class _Wandb:
    """A run of Weights & Biases, offline in ``wandb/`` of the run directory unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, directory: Path, settings: Mapping[str, str], known: str | None) -> None:
        import wandb

        self._wandb: Any = wandb
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=_title(directory),
            dir=str(directory),
            config=dict(settings),
            id=known,
            resume=None if known is None else "allow",
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run = str(self._run.id)

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        # Curves of training and of attacks have steps of their own, which W&B wants to rise in a call order else.
        kind = "eps" if all(name.startswith("curve/") for name in figures) else "step"
        self._run.log({kind: step, **figures})

    def close(self, metrics: Mapping[str, float], report: Path | None) -> None:
        self._run.summary.update(dict(metrics))
        if report is not None:
            self._run.log({"report": self._wandb.Html(report.read_text(encoding="utf-8"), inject=False)})
        self._run.finish(exit_code=0 if metrics else 1)


_OPEN: Mapping[str, Callable[[Path, Mapping[str, str], str | None], Tracker]] = {
    "tensorboard": lambda directory, settings, known: _TensorBoard(directory),
    "mlflow": _MLflow,
    "wandb": _Wandb,
}


def _title(directory: Path) -> str:
    return "/".join(directory.parts[-2:])


def _spelled(name: str) -> str:
    """``name`` in the letters that MLflow allows: those of a caption or a label may be any."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
