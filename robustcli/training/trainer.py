"""The training loop of all models, resumable to the same bits.

All draws of a step come from (seed, step), so the state of a run is its step, its weights, the optimiser and
the average.
"""

import copy
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.config.schemas import TrainerSettings
from robustcli.models import Model
from robustcli.models.generators import NVAE, Trained
from robustcli.training.optimizers import blend, build_optimiser, scheduled_lr
from robustcli.training.tasks import Task
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic
from robustcli.utils.seeding import derive_seed
from robustcli.utils.stops import asked_again, stop_signals

_TIMED_STEPS = 4  # after a first one that is not counted


@dataclass
class Training:
    """Length of a training in steps, seconds of a step where they were timed, and its history.

    A row of the history has the step (from 1) and its figures, one every ``log_every`` steps and at each validation.
    """

    steps: int
    step_seconds: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Optimisation of a model on a task: `PairTask` for dual encoders, `ClassTask` for classifiers, `GeneratorTask` for
    generators.

    Args:
        model: trained in place.
        task: reads batches of ``batch_size`` and has the loss.
        settings: see `TrainerSettings`.
        seed: of the run; with the number of the step it names every draw.
        validate: called with the model every ``eval_every`` steps and at the end; its figures join the history.

    Raises:
        UserError: neither ``max_steps`` nor ``max_seconds`` is given, or no such optimiser.
    """

    def __init__(
        self,
        model: Model | NVAE | Trained,
        task: Task,
        settings: TrainerSettings,
        *,
        seed: int,
        validate: Callable[[Any], Mapping[str, float]],
    ) -> None:
        if settings.max_steps is None and settings.max_seconds is None:
            raise UserError("trainer.max_steps and trainer.max_seconds are both null: give one of them.")
        self.model, self.task, self.settings, self.seed, self.validate = model, task, settings, seed, validate
        self.optimiser = build_optimiser(
            settings.optimizer, model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.average = _copied(model) if settings.ema else None
        self.training = Training(steps=0)
        self.step = 0
        self.state: Path | None = None

    @property
    def samples_per_step(self) -> int:
        """Images or pairs of an update: ``batch_size`` times ``accumulation``."""
        return self.settings.batch_size * self.settings.accumulation

    def prepare(self, state: Path | None = None) -> None:
        """Restore the training saved in ``state``, if it is there, else fix the number of steps; ``fit`` saves to it.

        Args:
            state: file of the resumable state; None: nothing is saved.

        Raises:
            UserError: the file is damaged, or of another training.
        """
        self.state = state
        if state is None or not state.exists():
            self.training = Training(*self._planned_steps())
            if self.settings.max_seconds is not None:
                self._save()  # the clock would plan other steps after a kill
            return
        try:
            content = torch.load(state, map_location=self.model.device, weights_only=True)
            self.model.network.load_state_dict(content["network"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.average, self.step = content["average"], content["step"]
            self.training = Training(**content["training"])
        # Torch's own words advise to load what it distrusts with all the code in it: they are not passed on.
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"the state of the training in {state} is damaged or of another training, so it cannot go on from "
                "there: put a copy of the file back, or begin a new run."
            ) from error

    def fit(self, on_step: Callable[[Mapping[str, float]], None]) -> Training:
        """Train to the end and leave the final weights in the model, in eval mode; call `prepare` first.

        Args:
            on_step: called after each step with its figures, for a display.

        Raises:
            KeyboardInterrupt, SystemExit: the run was asked to stop; the state was saved first.
            FloatingPointError: the loss is not finite.
        """
        settings, model, device = self.settings, self.model, self.model.device
        precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
        steps, history, saved = self.training.steps, self.training.history, time.monotonic()
        model.train()
        with _deferred_stop() as stop, ThreadPoolExecutor(1) as pool, self._compiled():
            upcoming = pool.submit(self._read, self.step)
            while self.step < steps:
                # Reading and augmenting the next batches costs the CPU as long as a small model computes: side by side.
                micro_batches = upcoming.result()
                upcoming = pool.submit(self._read, self.step + 1)

                # Forward and backward. The gradients of the micro-batches add up to that of one large batch, whose
                # activations need not fit into memory at once; negatives of a contrastive loss and moments of batch
                # norms are still those of a micro-batch. An attack in the loss leaves ``.grad`` alone (`frozen`), so
                # that only the outer loss adds to it. A seed names what a pass draws; the global generator
                # is for networks that draw by themselves (dropout), and is as it was afterwards.
                loss = 0.0
                with torch.random.fork_rng(), precision:
                    for micro, (batch, images) in enumerate(micro_batches):
                        seed = derive_seed(self.seed, "step", self.step, micro)
                        torch.manual_seed(seed)
                        part = self.task.loss(model, batch, images.to(device), seed=seed)
                        (part / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
                        loss += float(part.detach()) / len(micro_batches)  # waits for the device
                if not math.isfinite(loss):  # before the update, which would carry it into the weights
                    remedy = "lower trainer.lr or set trainer.clip"
                    raise FloatingPointError(f"the loss is {loss} at step {self.step}: {remedy}")

                # The update: the norm of the gradient is clipped over all weights together.
                if settings.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                for group in self.optimiser.param_groups:
                    group["lr"] = scheduled_lr(settings, self.step, steps)
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
                if self.average is not None and settings.ema:
                    # The warm-up of timm and TensorFlow, without which a short run is judged by its starting weights.
                    blend(self.average, model.network, min(settings.ema, (1 + self.step) / (10 + self.step)))
                self.step += 1

                # The figures of the step; a validation costs an evaluation of its set.
                figures = {"loss": loss}
                if self.step == steps or (settings.eval_every and self.step % settings.eval_every == 0):
                    figures |= self._validated()
                if len(figures) > 1 or self.step % settings.log_every == 0:
                    history.append({"step": self.step, **figures})
                on_step(figures)

                # A state is three times the weights (AdamW), four with their average: written every few minutes, not
                # every step.
                if stop.requested or time.monotonic() - saved > 60 * settings.save_minutes:
                    self._save()
                    saved = time.monotonic()
                stop.raise_if_requested()
        self._save()
        if self.average is not None:
            model.network.load_state_dict(self.average)
        model.eval()
        return self.training

    def _read(self, step: int) -> list[tuple[Any, Tensor]]:
        """The micro-batches of a step."""
        first = step * self.settings.accumulation
        return [self.task.load(first + micro) for micro in range(self.settings.accumulation)]

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """The image tower, or the whole of a classifier, compiled in place, so that the names of the weights stay.

        The evaluation, which calls it with many shapes, is left out. The text tower, whose batches are as long as their
        longest caption, is not worth it.
        """
        tower: Any = getattr(self.model.network, "visual", self.model.network)
        if not self.settings.compile:
            yield
            return
        tower.compile()
        try:
            yield
        finally:
            tower._compiled_call_impl = None  # torch has no way back of its own

    def _validated(self) -> Mapping[str, float]:
        """Figures of the weights that would be saved now; leaves mode, weights and generators as they were."""
        learnt = _copied(self.model) if self.average is not None else None
        if self.average is not None:
            self.model.network.load_state_dict(self.average)
        self.model.eval()
        with torch.no_grad():
            figures = self.validate(self.model)
        self.model.train()
        if learnt is not None:
            self.model.network.load_state_dict(learnt)
        return figures

    def _planned_steps(self) -> tuple[int, float | None]:
        """Number of steps and, where seconds bound the training, seconds of a step, timed on a copy of the model."""
        settings = self.settings
        if settings.max_seconds is None:
            assert settings.max_steps is not None
            return settings.max_steps, None
        each = self.seconds_of_a_step(_TIMED_STEPS)
        affordable = max(1, round(settings.max_seconds / each))
        return affordable if settings.max_steps is None else min(affordable, settings.max_steps), each

    def seconds_of_a_step(self, timed: int = 2) -> float:
        """Seconds of a step, the mean of ``timed`` of them after a first one; nothing of the training is changed.

        A copy of the model is trained and thrown away; validation and compilation, which would be timed too, are off.
        """
        short = replace(self.settings, max_steps=1 + timed, max_seconds=None, lr=0.0, eval_every=None, compile=False)
        trial = Trainer(copy.deepcopy(self.model), self.task, short, seed=self.seed, validate=lambda model: {})
        ends: list[float] = []
        trial.prepare()
        trial.fit(lambda figures: ends.append(_computing_seconds(self.model.device)))
        return (ends[-1] - ends[0]) / timed  # the first step pays for allocations and candidate tables

    def _save(self) -> None:
        if self.state is None:
            return
        content = {
            "step": self.step,
            "seed": self.seed,
            "network": self.model.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "training": asdict(self.training),
        }
        with atomic(self.state) as temporary:
            torch.save(content, temporary)


class _Stop:
    """Handler of signals that keeps the last one that asked to stop, until the step is over; a second Ctrl-C does not
    wait.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._interrupted: float | None = None

    def __call__(self, number: int, _frame: Any) -> None:
        asked_again(number, self._interrupted)  # which ends the process: a step of a large model may take minutes
        if number == signal.SIGINT:
            self._interrupted = self._interrupted or time.monotonic()
        self.requested = number

    def raise_if_requested(self) -> None:
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            raise SystemExit(128 + self.requested)


@contextmanager
def _deferred_stop() -> Iterator[_Stop]:
    """Context in which signals that ask to stop wait for the end of the step: a saved state is never half a step."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copied(model: Model | NVAE | Trained) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.network.state_dict().items()}


def _computing_seconds(device: torch.device) -> float:
    """Seconds of computing on a CPU, where a busy machine must not shorten the training; else of the clock."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.monotonic()
