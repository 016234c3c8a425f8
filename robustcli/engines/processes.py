"""Attacks of an evaluation by several processes on one machine, which store their parts where one process finds them.

Each process loads the command anew and takes the next chunk that nobody has: a sample's draws are named by the sample,
so that records do not depend on who computed what, and a run goes on with any number of processes.
"""

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from robustcli.config import schemas
from robustcli.evaluation import AttackRun, Evaluation, Group
from robustcli.evaluation.stored import Stored
from robustcli.runs.parts import part_path, records_part
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError, user_error_in_chain
from robustcli.utils.stops import requeue_signal

_LOOK = 0.5  # seconds between looks for a process that was lost


class LostProcess(RuntimeError):
    """A process that ended before its work."""


class _Unit(NamedTuple):
    """A chunk of a run of the evaluation, by its numbers."""

    run: AttackRun
    chunk: int
    images: int

    @property
    def part(self) -> str:
        return f"{self.run.part}/{self.chunk:05d}"


class _Work(NamedTuple):
    """What a process needs to load the command again."""

    command: str
    config: DictConfig
    hydra: Any
    directory: Path
    images: int


def attack_in_processes(
    run: Run,
    config: DictConfig,
    evaluation: Evaluation,
    groups: Sequence[Group],
    show: Callable[[AttackRun, int], None],
) -> None:
    """Compute and store the parts of all attack runs on ``groups`` by ``config.processes`` processes.

    Args:
        show: progress: receives a run and the number of its images that were done.

    Raises:
        UserError: what a process met on loading.
        LostProcess: one ended, by a signal or for want of memory; what the others have stored stays.
    """
    units = _units(evaluation, groups)
    missing = [number for number, unit in enumerate(units) if not part_path(run.directory, unit.part).exists()]
    for number in set(range(len(units))) - set(missing):
        show(units[number].run, units[number].images)
    context = multiprocessing.get_context("spawn")
    work = _Work(
        str(run.manifest["command"]), config, HydraConfig.instance().cfg, run.directory, len(evaluation.evaluator)
    )
    with _started(context, work, missing, min(config.processes, len(missing))) as (processes, results):
        done = 0
        while done < len(missing):
            try:
                found = results.get(timeout=_LOOK)
            except Empty:
                _check(processes, run.directory)
                continue
            if isinstance(found, Exception):
                raise found
            show(units[found].run, units[found].images)
            done += 1


def _units(evaluation: Evaluation, groups: Sequence[Group]) -> list[_Unit]:
    """All chunks of all runs, in an order that is the same in every process."""
    sizes = [len(rows) for rows in evaluation.evaluator.chunks()]
    runs = [each for group in groups for each in evaluation.runs(group)]
    return [_Unit(each, chunk, size) for each in runs for chunk, size in enumerate(sizes)]


@contextmanager
def _started(
    context: SpawnContext, work: _Work, missing: Sequence[int], count: int
) -> Iterator[tuple[list[SpawnProcess], Any]]:
    """Processes that work on the units ``missing``, and the queue of what they have done; ended with the context."""
    results, taken = context.Queue(), context.Value("l", 0)
    processes = [
        context.Process(target=_work, args=(work, list(missing), taken, results, number), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield processes, results
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        results.close()
        results.cancel_join_thread()


def _check(processes: Sequence[SpawnProcess], directory: Path) -> None:
    for number, process in enumerate(processes):
        if process.exitcode not in (None, 0):
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            raise LostProcess(
                f"process {number + 1} of {len(processes)} was lost ({how}; 9 is often want of memory): what is done "
                f"is kept, go on with resume={directory} and, if need be, fewer processes"
            )


def _work(work: _Work, missing: list[int], taken: Any, results: Any, number: int) -> None:
    """The life of a process: load the command, then take chunk after chunk."""
    # Ctrl-C, and the signal of Slurm, reach all; the first process ends the others.
    for asked in (signal.SIGINT, requeue_signal()):
        if asked is not None:
            signal.signal(asked, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        schemas.register()  # and the resolvers that the config refers to
        HydraConfig.instance().cfg = work.hydra
        config = work.config
        if config.device in ("auto", "cuda") and torch.cuda.is_available():
            config.device = f"cuda:{number % torch.cuda.device_count()}"
        loaded = importlib.import_module(f"robustcli.engines.{work.command}").load(config)
        evaluation = loaded.evaluation
        if work.images < len(evaluation.evaluator):
            evaluation.evaluator.shorten(work.images, "as in the first process")
        stores = work.command == "attack" or config.evaluation.keep_inputs
        keep = Stored(work.directory, evaluation, loaded.groups).keep if stores else None
        units, part = _units(evaluation, loaded.groups), partial(records_part, work.directory)
        while (unit := _next(missing, taken)) is not None:
            for _ in evaluation.evaluator.parts(units[unit].run, keep=keep, part=part, numbers=(units[unit].chunk,)):
                pass
            results.put(unit)
    except Exception as error:
        mistake = user_error_in_chain(error)
        first = (str(error).splitlines() or [""])[0]
        results.put(UserError(str(mistake)) if mistake else RuntimeError(f"{type(error).__name__}: {first}"))


def _next(missing: Sequence[int], taken: Any) -> int | None:
    """The next unit that nobody has taken; None: there is none."""
    with taken.get_lock():
        place = taken.value
        taken.value += 1
    return missing[place] if place < len(missing) else None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(128 + signal.SIGTERM)  # files appear whole or not at all
