"""History of a training: its display and its trackers while it runs, and ``training.csv`` at its end."""

from collections.abc import Mapping

import pandas as pd

from robustcli.runs.run import Run
from robustcli.training.trainer import Trainer, Training
from robustcli.utils import files
from robustcli.utils.progress import Progress


def train(trainer: Trainer, run: Run, unit: str) -> Training:
    """Train to the end, from where `Trainer.prepare` has left it; the length and the history of the training.

    Errors are those of `Trainer.fit`.

    Args:
        unit: of the display, such as ``pairs``.
    """
    with Progress(trainer.training.steps, "train", done=trainer.step, unit=unit) as progress:

        def show(figures: Mapping[str, float]) -> None:
            progress.advance(1, samples=trainer.samples_per_step, **figures)
            run.trackers.scalars(trainer.step, figures)

        return trainer.fit(show)


def write_history(run: Run, training: Training) -> dict[str, float]:
    """Write ``training.csv``, a row every ``log_every`` steps; returns its last row as ``train/<figure>``."""
    with files.atomic(run.directory / "training.csv") as path:
        pd.DataFrame(training.history).to_csv(path, index=False)
    last = {f"train/{key}": value for key, value in (training.history or [{}])[-1].items() if key != "step"}
    return {"train/steps": float(training.steps), **last}
