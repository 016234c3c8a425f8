"""Attacks of an evaluation by several processes on one machine, which store their parts where one process finds them.

Each process loads the command anew and takes the next chunk that nobody has: a sample's draws are named by the sample,
so that records do not depend on who computed what, and a run goes on with any number of processes.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import Empty
from typing import Any, NamedTuple

from omegaconf import DictConfig

from robustcli.engines.workers import Work, check_alive, spawnable, start_tracker, told
from robustcli.evaluation import AttackRun, Evaluation, Group
from robustcli.evaluation.stored import Stored
from robustcli.runs.parts import part_path, records_part
from robustcli.runs.run import Run

_LOOK = 0.5  # seconds between looks for a process that was lost


class _Unit(NamedTuple):
    """A chunk of a run of the evaluation, by its numbers."""

    run: AttackRun
    chunk: int
    images: int

    @property
    def part(self) -> str:
        return f"{self.run.part}/{self.chunk:05d}"


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
    count, images = min(config.processes, len(missing)), len(evaluation.evaluator)
    work = Work.of(run, config, str(run.manifest["command"]))
    with _started(context, (work, images, missing), count) as (processes, results):
        done = 0
        while done < len(missing):
            try:
                found = results.get(timeout=_LOOK)
            except Empty:
                check_alive(processes, count, f"what is done is kept, go on with resume={run.directory}")
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
    context: SpawnContext, work: tuple[Work, int, list[int]], count: int
) -> Iterator[tuple[list[SpawnProcess], Any]]:
    """Processes that do ``work``, see `_work`, and the queue of what they have done; ended with the context."""
    start_tracker()
    results, taken = context.Queue(), context.Value("l", 0)
    processes = [
        context.Process(target=_work, args=(*work, taken, results, number), daemon=True) for number in range(count)
    ]
    with spawnable():
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


def _work(work: Work, images: int, missing: list[int], taken: Any, results: Any, number: int) -> None:
    """The life of a process: load the command, then take chunk after chunk of the units ``missing``."""
    try:
        engine = work.begin(number, lambda: os._exit(128 + signal.SIGTERM))  # files appear whole or not at all
        config = work.config
        loaded = engine.load(config)
        evaluation = loaded.evaluation
        if images < len(evaluation.evaluator):
            evaluation.evaluator.shorten(images, "as in the first process")
        stores = work.engine == "attack" or config.evaluation.keep_inputs
        keep = Stored(work.directory, evaluation, loaded.groups).keep if stores else None
        units, part = _units(evaluation, loaded.groups), partial(records_part, work.directory)
        while (unit := _next(missing, taken)) is not None:
            for _ in evaluation.evaluator.parts(units[unit].run, keep=keep, part=part, numbers=(units[unit].chunk,)):
                pass
            results.put(unit)
    except Exception as error:
        results.put(told(error))


def _next(missing: Sequence[int], taken: Any) -> int | None:
    """The next unit that nobody has taken; None: there is none."""
    with taken.get_lock():
        place = taken.value
        taken.value += 1
    return missing[place] if place < len(missing) else None
