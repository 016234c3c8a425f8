"""History of a training: its display and TensorBoard while it runs, and ``training.csv`` at its end."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustcli.runs.run import Run
from robustcli.training.trainer import Trainer, Training
from robustcli.utils import files
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Progress


def train(trainer: Trainer, run: Run, unit: str) -> Training:
    """Train to the end, from where `Trainer.prepare` has left it; the length and the history of the training.

    Errors are those of `Trainer.fit`.

    Args:
        unit: of the display, such as ``pairs``.
    """
    board = _tensorboard(run) if trainer.settings.tensorboard else None
    with Progress(trainer.training.steps, "train", done=trainer.step, unit=unit) as progress:

        def show(figures: Mapping[str, float]) -> None:
            progress.advance(1, samples=trainer.samples_per_step, **figures)
            if board is not None:
                for name, value in figures.items():
                    board.add_scalar(name, value, trainer.step)

        return trainer.fit(show)


def write_history(run: Run, training: Training) -> dict[str, float]:
    """Write ``training.csv``, a row every ``log_every`` steps; returns its last row as ``train/<figure>``."""
    with files.atomic(run.directory / "training.csv") as path:
        pd.DataFrame(training.history).to_csv(path, index=False)
    last = {f"train/{key}": value for key, value in (training.history or [{}])[-1].items() if key != "step"}
    return {"train/steps": float(training.steps), **last}


def check_tensorboard(wanted: bool) -> None:
    """`UserError` for ``trainer.tensorboard=true`` where TensorBoard is not installed: before long work, not after."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise UserError("trainer.tensorboard=true needs TensorBoard: pip install 'robustcli[tracking]'.")


def _tensorboard(run: Run) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.directory / "tensorboard"))
