"""The training loop of all models, resumable to the same bits.

All draws of a step come from (seed, step), so the state of a run is its step, its weights, the optimiser and
the average.
"""

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.config.schemas import TrainerSettings
from robustcli.models import Model
from robustcli.models.checkpointing import check_blocks, checkpointed
from robustcli.models.generators import NVAE, Trained
from robustcli.training.gradients import Gradients
from robustcli.training.group import Group
from robustcli.training.negatives import StepNegatives
from robustcli.training.optimizers import (
    blend,
    build_optimiser,
    moments,
    restore_moments,
    scheduled_lr,
    started_average,
    swap,
)
from robustcli.training.pairwise import PairwiseSum, pairwise_sum
from robustcli.training.shards import Shards
from robustcli.training.state import DAMAGES, Saved, save
from robustcli.training.tasks import PairTask, Task
from robustcli.utils.errors import LostProcess, UserError
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

    Attributes:
        group: processes that share the micro-batches of a step; this one alone until another is set, before `prepare`.

    Raises:
        UserError: neither ``max_steps`` nor ``max_seconds`` is given, no such optimiser, or a loss or a network that
            ``negatives`` or ``checkpointing`` do not serve.
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
        self.negatives = None
        if settings.negatives == "step" and isinstance(task, PairTask):
            self.negatives = StepNegatives(task, model, settings.accumulation)
        if settings.checkpointing:
            check_blocks(model.network)
        self.model, self.task, self.settings, self.seed, self.validate = model, task, settings, seed, validate
        self.training = Training(steps=0)
        self.group = Group()
        self.step = 0
        self.state: Path | None = None
        self._saves = False
        self._own()

    @property
    def samples_per_step(self) -> int:
        """Images or pairs of an update: ``batch_size`` times ``accumulation``."""
        return self.settings.batch_size * self.settings.accumulation

    def prepare(self, state: Path | None = None) -> None:
        """Restore the training saved in ``state``, if it is there, else fix the number of steps; ``fit`` saves to it.

        Args:
            state: file of the resumable state, which the first process of a group reads and writes for all; None:
                nothing is saved.

        Raises:
            UserError: the file is damaged, or of another training; or processes that are.
        """
        self.state = state if self.group.rank == 0 else None
        self._saves = self.group.shared(lambda: None if self.state is None else b"") is not None
        self._check_alike("are of different trainings: weights, data, seed or settings differ; start all of them alike")
        if self.group.size > 1:  # which was not known before
            self._own()
        saved = Saved(self.state, self.group)
        if not saved.names:
            plan = self.group.shared(lambda: json.dumps(self._planned_steps()).encode())
            self.training = Training(*json.loads(plan or b"[]"))
            if self.settings.max_seconds is not None:
                self._save()  # the clock would plan other steps after a kill
            return
        try:
            self._restore(saved)
        except LostProcess:
            raise
        except DAMAGES as error:
            raise saved.damaged() from error

    def fit(self, on_step: Callable[[Mapping[str, float]], None]) -> Training:
        """Train to the end and leave the final weights in the model, in eval mode; call `prepare` first.

        Args:
            on_step: called after each step with its figures, for a display.

        Raises:
            KeyboardInterrupt, SystemExit: the run was asked to stop; the state was saved first.
            FloatingPointError: the loss is not finite.
        """
        settings, model, group = self.settings, self.model, self.group
        steps, history, saved = self.training.steps, self.training.history, time.monotonic()
        model.train()
        with _deferred_stop() as stop, ThreadPoolExecutor(1) as pool, self._compiled(), self._checkpointed():
            upcoming = pool.submit(self._read, self.step)
            while self.step < steps:
                # Reading and augmenting the next batches costs the CPU as long as a small model computes: side by side.
                micro_batches = upcoming.result()
                upcoming = pool.submit(self._read, self.step + 1)

                # Forward and backward, in all processes.
                due = time.monotonic() - saved > 60 * settings.save_minutes
                loss, asked, due = self._backward(micro_batches, stop, due)
                if not math.isfinite(loss):  # before the update, which would carry it into the weights
                    remedy = "lower trainer.lr or set trainer.clip"
                    raise FloatingPointError(f"the loss is {loss} at step {self.step}: {remedy}")

                # The update: the norm of the gradient is clipped over all weights together.
                if settings.clip:
                    self.shards.clip(settings.clip)
                for options in self.optimiser.param_groups:
                    options["lr"] = scheduled_lr(settings, self.step, steps)
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
                self.shards.spread()
                if self.average is not None and settings.ema:
                    # The warm-up of timm and TensorFlow, without which a short run is judged by its starting weights.
                    blend(self.average, model.network, min(settings.ema, (1 + self.step) / (10 + self.step)))
                self.step += 1

                # The figures of the step; a validation costs an evaluation of its set.
                figures = {"loss": loss}
                if self.step == steps:
                    self._check_alike("have other weights after the last step: their machines or versions differ")
                if self.step == steps or (settings.eval_every and self.step % settings.eval_every == 0):
                    figures |= self._validated()
                if len(figures) > 1 or self.step % settings.log_every == 0:
                    history.append({"step": self.step, **figures})
                on_step(figures)

                # A state is three times the weights (AdamW), four with their average: written every few minutes, not
                # every step.
                if group.size == 1 or self.step == steps:  # else all of them stop after the same step
                    asked = stop.requested or asked
                if asked or due:
                    self._save()
                    saved = time.monotonic()
                _raise_stop(asked)
        self._save()
        self._exchange()
        model.eval()
        return self.training

    def _own(self) -> None:
        """Optimiser and average of the weights that this process of the group owns."""
        self.average: dict[str, Tensor] | None = None  # before there is another
        settings, network = self.settings, self.model.network
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._numbers: dict[Tensor, int] = {weight: number for number, weight in enumerate(weights)}
        self.shards = Shards(weights, self.group, settings.strategy)
        owned = [weights[number] for number in self.shards.owned]
        self.optimiser = build_optimiser(settings.optimizer, owned, lr=settings.lr, weight_decay=settings.weight_decay)
        self.average = started_average(network, set(weights) - set(owned)) if settings.ema else None

    def _backward(
        self, micro_batches: Sequence[tuple[Any, Tensor]], stop: "_Stop", due: bool
    ) -> tuple[float, int, bool]:
        """Leave the gradient of the step in the weights; returns its loss, the signal that asked a process to stop, and
        whether the state is to be saved by the clock of the first one.

        The gradients of the micro-batches add up to that of one large batch, whose activations need not fit into memory
        at once, in an order that does not depend on the processes that share them. Moments of batch norms are still
        those of a micro-batch, and so are negatives unless they are gathered.
        """
        settings, model, group = self.settings, self.model, self.group
        device, count, run = model.device, settings.accumulation, group.run(settings.accumulation)
        # Without the cache of casts: before torch 2.11 one that a pass without a graph has made, as of the features of
        # `StepNegatives`, serves the pass with one too, and its weights get no gradient.
        bf16 = settings.precision == "bf16"
        precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)
        # A seed names what a pass draws; the global generator is for networks that draw by themselves (dropout), and
        # is as it was afterwards.
        seeds = [derive_seed(self.seed, "step", self.step, micro) for micro in run]
        summed = Gradients(list(model.parameters()), list(model.network.buffers()))
        gradients, losses = PairwiseSum(), []
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), precision:
            if self.negatives is not None:
                self.negatives.begin(micro_batches, seeds, group, restore=summed.restore)
            for micro, seed, (batch, images) in zip(run, seeds, micro_batches, strict=True):
                torch.manual_seed(seed)
                if self.negatives is None:
                    # An attack in the loss leaves ``.grad`` alone (`frozen`): only the outer loss adds to it.
                    part = self.task.loss(model, batch, images.to(device), seed=seed)
                    (part / count).backward()  # type: ignore[no-untyped-call]
                    losses.append(float(part.detach()) / count)  # waits for the device
                else:
                    part, value = self.negatives.part(micro)
                    part.backward()  # type: ignore[no-untyped-call]
                    losses.append(value / count)
                if count > 1:
                    gradients.add(summed.take(), micro)
        told = group.gathered(torch.tensor([[each, stop.requested or 0, due] for each in losses], dtype=torch.double))
        if count > 1:
            self.shards.give(summed, gradients, count)
        return pairwise_sum(told[:, 0].tolist()), int(told[:, 1].max()), bool(told[0, 2])

    def _read(self, step: int) -> list[tuple[Any, Tensor]]:
        """The micro-batches of a step that this process computes."""
        first = step * self.settings.accumulation
        return [self.task.load(first + micro) for micro in self.group.run(self.settings.accumulation)]

    def _check_alike(self, otherwise: str) -> None:
        """Refuse processes of a group whose trainings differ."""
        if self.group.size > 1:
            settings = replace(self.settings, devices=1)
            data = getattr(getattr(self.task, "data", None), "fingerprint", None)
            self.group.check_equal([self.model.fingerprint(), data, settings, self.seed, self.step], otherwise)

    def _restore(self, saved: Saved) -> None:
        self.model.network.load_state_dict(dict(saved.under("weights")))
        owned = {int(number): kept for number, kept in saved.under("moments") if int(number) in self.shards.owned}
        restore_moments(self.optimiser, self._numbers, owned)
        average = self.average or {}
        if lost := {f"average/{key}" for key in average}.difference(saved.names):
            raise LookupError(min(lost))
        for key, value in saved.under("average"):
            if key in average:
                average[key].copy_(value)
        self.step, self.training = saved["step"], Training(**saved["training"])

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        if not self.settings.checkpointing:
            yield
            return
        with checkpointed(self.model.network):
            yield

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
        """Figures of the weights that would be saved now, in the first process; leaves mode, weights and generators as
        they were.
        """
        self._exchange()
        figures: Mapping[str, float] = {}
        if self.group.rank == 0:
            self.model.eval()
            with torch.no_grad():
                figures = self.validate(self.model)
            self.model.train()
        self._exchange()
        return figures

    def _exchange(self) -> None:
        """Exchange the weights with their average, where there is one, in all processes."""
        if self.average is not None:
            swap(self.average, self.model.network)
            self.shards.spread()

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

        A copy of the model is trained and thrown away; validation and compilation, which would be timed too, are off,
        and so is what other processes compute meanwhile.
        """
        share = len(self.group.run(self.settings.accumulation))
        short = replace(
            self.settings,
            accumulation=share,
            max_steps=1 + timed,
            max_seconds=None,
            lr=0.0,
            eval_every=None,
            compile=False,
        )
        trial = Trainer(copy.deepcopy(self.model), self.task, short, seed=self.seed, validate=lambda model: {})
        ends: list[float] = []
        trial.prepare()
        trial.fit(lambda figures: ends.append(_computing_seconds(self.model.device)))
        return (ends[-1] - ends[0]) / timed  # the first step pays for allocations and candidate tables

    def _save(self) -> None:
        """Write the state, in the first process; the others send it what they alone have."""
        if not self._saves or (self.state is None and not self.shards.split):
            return
        kept = moments(self.optimiser, self._numbers)
        entries: dict[str, Any] = {f"moments/{number}": each for number, each in kept.items()}
        entries |= {f"average/{key}": each for key, each in (self.average or {}).items()}
        if self.group.rank == 0:
            entries |= {f"weights/{key}": each for key, each in self.model.network.state_dict().items()}
            entries |= {"step": self.step, "seed": self.seed, "training": asdict(self.training)}
        save(self.state, entries, self.group if self.shards.split else Group())


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


def _raise_stop(number: int) -> None:
    """Raise the exception of the signal that asked to stop; 0: none did."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number:
        raise SystemExit(128 + number)


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


def _computing_seconds(device: torch.device) -> float:
    """Seconds of computing on a CPU, where a busy machine must not shorten the training; else of the clock."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.monotonic()
