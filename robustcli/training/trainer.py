"""The training loop: batches in, robust weights out, resumable to the same bits.

Everything that a step draws comes from (seed, step), so the state of a run is its step, its weights, the optimiser and
the average.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.models import Model
from robustcli.models.generators import NVAE
from robustcli.training.optimizers import build_optimiser
from robustcli.training.tasks import Task
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic
from robustcli.utils.seeding import derive_seed

_TIMED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How long, how fast and on what a training runs; the keys of ``conf/trainer``.

    Args:
        max_steps, max_seconds: the first of both bounds that is given rules; ``max_seconds`` of computing time is
            turned into a number of steps at the start, from a few timed steps, so that the run itself is bounded by
            steps and can be rebuilt.
        batch_size: pairs of a step and micro-batch; ``accumulation`` of them make an update.
        lr, weight_decay: of the ``optimizer``, see `build_optimiser`; ``warmup``: share of the steps in which lr rises
            from 0; ``schedule``: ``cosine`` to 0, or ``constant``.
        clip: largest norm of the gradient; null for none.
        precision: ``fp32``, or ``bf16`` autocast where the device has it.
        ema: decay of an exponential moving average of the weights, which is then what is judged and saved; null for
            none.
        compile: compile the image tower (torch.compile), for long runs: the first steps take a minute or two longer.
            Figures may differ from those without it by rounding.
        tensorboard: also write the course of the training for TensorBoard (needs the extra ``tracking``).
        save_minutes: the state is saved as often, and on SIGTERM and Ctrl-C.
    """

    max_steps: int | None
    max_seconds: float | None
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float
    schedule: str
    accumulation: int
    clip: float | None
    precision: str
    ema: float | None
    threads: int
    device: str
    compile: bool
    tensorboard: bool
    save_minutes: float
    eval_every: int | None
    log_every: int
    optimizer: str = "adamw"


@dataclass
class Training:
    """What is left of a training: its length and its course (one row every ``log_every`` steps)."""

    steps: int
    step_seconds: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a model on a task: that of `PairTask` for dual encoders, of `ClassTask` for classifiers, of
    `GeneratorTask` for generators.

    Args:
        task: reads batches of ``batch_size`` and has the loss.
        state: file of the resumable state.
        validate: called with the model every ``eval_every`` steps and at the end; its figures join the course of the
            training.
    """

    def __init__(
        self,
        model: Model | NVAE,
        task: Task,
        settings: TrainerSettings,
        *,
        seed: int,
        state: Path,
        validate: Callable[[Any], Mapping[str, float]],
    ) -> None:
        self.model, self.task = model, task
        self.settings, self.seed, self.state = settings, seed, state
        self.validate = validate
        self.optimiser = build_optimiser(
            settings.optimizer, model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.average = _copied(model) if settings.ema else None
        self.training = Training(steps=0)
        self.step = 0

    @property
    def samples_per_step(self) -> int:
        """Images or pairs that an update sees."""
        return self.settings.batch_size * self.settings.accumulation

    def prepare(self) -> None:
        """Take up the saved state if there is one; else fix the number of steps."""
        if self.state.exists():
            self._restore()
        else:
            self.training.steps = self._planned_steps()

    def fit(self, on_step: Callable[[Mapping[str, float]], None]) -> Training:
        """Train to the end and leave the final weights in the model, in eval mode; call `prepare` first.

        Args:
            on_step: called after each step with its figures, for a display.

        Raises:
            KeyboardInterrupt, SystemExit: the run was asked to stop; the state was saved first.
            FloatingPointError: the loss is not finite.
        """
        saved = time.monotonic()
        self.model.train()
        with _deferred_stop() as stop, ThreadPoolExecutor(1) as pool, self._compiled():
            upcoming = pool.submit(self._load, self.step)
            while self.step < self.training.steps:
                micro_batches = upcoming.result()
                upcoming = pool.submit(self._load, self.step + 1)  # read while the step computes
                on_step(self._update(micro_batches))
                if stop.requested or time.monotonic() - saved > 60 * self.settings.save_minutes:
                    self._save()
                    saved = time.monotonic()
                stop.raise_if_requested()
        self._save()
        if self.average is not None:
            self.model.network.load_state_dict(self.average)
        self.model.eval()
        return self.training

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """The image tower, or the whole of a classifier, compiled in place, so that the names of the weights stay.

        Judging, which calls it with many shapes, is left out. The text tower, whose batches are as long as their
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

    def _load(self, step: int) -> list[tuple[Any, Tensor]]:
        first = step * self.settings.accumulation
        return [self.task.load(first + micro) for micro in range(self.settings.accumulation)]

    def _update(self, micro_batches: list[tuple[Any, Tensor]]) -> dict[str, float]:
        figures = {"loss": self._train_step(micro_batches)}
        self.step += 1
        every, last = self.settings.eval_every, self.step == self.training.steps
        if last or (every and self.step % every == 0):
            figures.update(self._validated())
        if len(figures) > 1 or self.step % self.settings.log_every == 0:
            self.training.history.append({"step": self.step, **figures})
        return figures

    def _train_step(self, micro_batches: list[tuple[Any, Tensor]]) -> float:
        settings = self.settings
        self._set_lr()
        total = 0.0
        with torch.random.fork_rng(), self._autocast():
            for micro, (batch, images) in enumerate(micro_batches):
                seed = derive_seed(self.seed, "step", self.step, micro)
                torch.manual_seed(seed)  # dropout, where a network has it
                loss = self.task.loss(self.model, batch, images.to(self.model.device), seed=seed)
                (loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) / len(micro_batches)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} at step {self.step}: lower trainer.lr or set trainer.clip")
        if settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None and settings.ema:
            # The warm-up of timm and TensorFlow: without it a short run would be judged by its starting weights.
            _blend(self.average, self.model, min(settings.ema, (1 + self.step) / (10 + self.step)))
        return total

    def _set_lr(self) -> None:
        warm = self.settings.warmup * self.training.steps
        rise = min(1.0, (self.step + 1) / warm) if warm else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.training.steps))
        fall = cosine if self.settings.schedule == "cosine" else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * min(rise, fall)

    def _autocast(self) -> Any:
        if self.settings.precision == "bf16":
            return torch.autocast(self.model.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _validated(self) -> Mapping[str, float]:
        """Figures of the model under validation; leaves mode, weights and generators as they were."""
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

    def _planned_steps(self) -> int:
        """The bound in steps; a bound in seconds is measured on a few steps that are then undone."""
        settings = self.settings
        if settings.max_seconds is None:
            if settings.max_steps is None:
                raise UserError("trainer.max_steps and trainer.max_seconds are both null: give one of them.")
            return settings.max_steps
        before, self.training.steps = _copied(self.model), 10**6
        average = None if self.average is None else {key: value.clone() for key, value in self.average.items()}
        batches = [self._load(step) for step in range(_TIMED_STEPS + 1)]
        self._train_step(batches[0])  # the first step pays for allocations and candidate tables
        started = _computing_seconds(self.model.device)
        for batch in batches[1:]:
            self._train_step(batch)
        each = (_computing_seconds(self.model.device) - started) / _TIMED_STEPS
        self.model.network.load_state_dict(before)
        self.average, self.optimiser.state = average, type(self.optimiser.state)(dict)
        self.training.step_seconds = each
        affordable = max(1, round(settings.max_seconds / each))
        return affordable if settings.max_steps is None else min(affordable, settings.max_steps)

    def _save(self) -> None:
        content = {
            "step": self.step,
            "seed": self.seed,
            "network": self.model.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "training": {
                "steps": self.training.steps,
                "step_seconds": self.training.step_seconds,
                "history": self.training.history,
            },
        }
        with atomic(self.state) as temporary:
            torch.save(content, temporary)

    def _restore(self) -> None:
        content = torch.load(self.state, map_location=self.model.device, weights_only=True)
        self.model.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average, self.step = content["average"], content["step"]
        self.training = Training(**content["training"])


class _Stop:
    """Remembers the first signal that asked to stop."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def __call__(self, number: int, _frame: Any) -> None:
        self.requested = number

    def raise_if_requested(self) -> None:
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested is not None:
            raise SystemExit(128 + self.requested)


@contextmanager
def _deferred_stop() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that what is saved is never half a step."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copied(model: Model | NVAE) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.network.state_dict().items()}


def _blend(average: dict[str, Tensor], model: Model | NVAE, decay: float) -> None:
    with torch.no_grad():
        for key, value in model.network.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)
            else:
                average[key].copy_(value)


def _computing_seconds(device: torch.device) -> float:
    """Seconds of computing on a CPU, where a busy machine must not shorten the training; else of the clock."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.monotonic()
