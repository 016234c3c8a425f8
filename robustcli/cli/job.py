"""The job that Hydra runs: it opens the run directory and calls the engine of the command.

A failure prints one line on the terminal; its traceback is written to the run directory.
"""

import importlib
import math
import sys
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from robustcli.cli.commands import find
from robustcli.cli.signals import end_with_parent
from robustcli.cli.submitted import requeued
from robustcli.config.checks import check
from robustcli.config.unread import recorded_words, typed_words
from robustcli.runs.manifest import record_refusal
from robustcli.runs.sweeps import read_jobs
from robustcli.utils.errors import SuspectClaim, behind, lacks_memory, lacks_room, user_error_in_chain
from robustcli.utils.stops import stop_code
from robustcli.utils.world import world_of

# On import, because the workers of joblib and submitit import this module, and nothing else of ours, when they unpickle
# a Job. The cache gives all uses within a sweep one id; the system draws it, since equal seeds may start in one second.
OmegaConf.register_new_resolver("run_id", lambda: token_hex(3), use_cache=True, replace=True)


class Job:
    """The task of a command; can be pickled, and imports its engine where it runs.

    Args:
        command: name as typed, for example ``train-mat``.
        trusted: its config may name code from outside of robustcli.
    """

    def __init__(self, command: str, *, trusted: bool = True) -> None:
        self.command, self.trusted = command, trusted

    def __repr__(self) -> str:
        return f"Job({self.command!r}, trusted={self.trusted})"

    def __call__(self, config: DictConfig) -> float:
        """Run the engine; returns the objective of a sweeper.

        A failed job of a sweep returns NaN instead, which `counted` knows: after an exception Hydra skips the table.

        Raises:
            SystemExit: outside a sweep, after one printed line; code 2 for a user's mistake, 1 for any other failure.
        """
        end_with_parent()
        with requeued():
            return self._job(config)

    def _job(self, config: DictConfig) -> float:
        hydra = HydraConfig.get()
        directory, overrides = Path(hydra.runtime.output_dir), typed_words()
        follows = False
        try:
            _take_own_number()
            overrides = recorded_words(config)
            follows = self._follows()
            if follows:
                return self._follow(config, directory)
            return self._run(config, directory, overrides)
        except BaseException as error:
            if code := stop_code(error):
                if not follows:
                    _say_how_to_go_on(self.command, directory)
                raise SystemExit(code) from error  # in place of what a library may have made of a signal
            if not isinstance(error, Exception):
                raise
            mistake = user_error_in_chain(error)
            name = f"job {hydra.sweep.subdir}: " if hydra.mode is RunMode.MULTIRUN else ""
            said = mistake or (error if isinstance(error, SuspectClaim) else failure(error, directory))
            print(f"error: {name}{said}", file=sys.stderr, flush=True)
            if hydra.mode is RunMode.MULTIRUN and not follows:
                with suppress(OSError):  # a full disk: the outcome counts, and not its marker
                    record_refusal(directory, overrides, str(mistake or error))
                return math.nan
            _leave_no_empty(directory)
            raise SystemExit(2 if mistake else 1) from error

    def _follows(self) -> bool:
        """True where this process trains beside the first one of several that torchrun or srun have started; of a job
        of submitit those are its tasks.
        """
        world = world_of()
        return world is not None and world.rank > 0 and find(self.command).engine == "train"

    def _follow(self, config: DictConfig, directory: Path) -> float:
        """Train along; what this process would have called its run is that of the first one."""
        check(config, trusted=self.trusted)
        engine_of(self.command).follow(config)
        _leave_no_empty(directory)
        return math.nan

    def _run(self, config: DictConfig, directory: Path, overrides: list[str]) -> float:
        check(config, trusted=self.trusted)  # before the run is opened: a mistake in the config is no failed run
        from robustcli.runs.provenance import input_files
        from robustcli.runs.run import Run
        from robustcli.runs.trackers import tracker_names

        tracker_names(config.tracker)

        settings: Any = OmegaConf.to_container(config, resolve=True)
        run = Run.open(self.command, settings, directory, overrides)
        try:
            with run:
                if run.done:
                    if world_of() is not None:
                        engine_of(self.command).end_followers()
                    print(f"{run.directory} is done already", flush=True)
                    return run.objective
                run.track(config.tracker, settings)
                run.note_inputs(files=input_files(settings))
                run.finish(engine_of(self.command).run(config, run))
        except Exception as error:
            if user_error_in_chain(error):
                run.discard()
            raise
        if (page := run.directory / "report.html").is_file():
            print(f"report: {page}", flush=True)
        print(f"run: {run.directory}", flush=True)
        return run.objective


def engine_of(command: str) -> ModuleType:
    """The module with ``load(config)`` and ``run(config, run)`` of a command; imports torch and what else it needs."""
    return importlib.import_module(f"robustcli.engines.{find(command).engine}")


def failure(error: BaseException, directory: Path) -> str:
    """One line with the type and first line of ``error`` and the path of its traceback; or that the disk or the memory
    is full.
    """
    reason = (str(error).strip().splitlines() or [""])[0]
    written = directory / "FAILED"
    trace = f" (traceback in {written})" if written.exists() else ""
    if lacks_room(error):
        return f"the disk of {directory} has no room left{trace}: make room there, and start the same again"
    if any(map(lacks_memory, behind(error))):
        return (
            f"the memory ran out{trace}: take a smaller evaluation.batch_size, or trainer.batch_size in training, or "
            f"device=cpu; or end what else takes the memory, and go on with resume={directory}"
        )
    return f"{type(error).__name__}: {reason}{trace}"


def _take_own_number() -> None:
    """Give a job the number that it has in its sweep, to which a setting may refer (``${hydra:job.num}``): a launcher
    that got the jobs alone that are left has counted those.
    """
    hydra: Any = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        numbers = {job.directory: job.number for job in read_jobs(Path(hydra.sweep.dir))}
        number = numbers.get(hydra.sweep.subdir, hydra.job.num)
        with read_write(hydra), open_dict(hydra):
            hydra.job.num = number


def _say_how_to_go_on(command: str, directory: Path) -> None:
    """Print how a run that was stopped goes on; of a job the sweep says so, of one that is done there is nothing."""
    if HydraConfig.get().mode is RunMode.RUN and (directory / "config.yaml").is_file():
        done = (directory / "DONE").is_file()
        said = f"{directory} is done" if done else f"go on with: robustcli {command} resume={directory}"
        with suppress(OSError):  # of a terminal that was closed
            print(said, file=sys.stderr, flush=True)


def _leave_no_empty(directory: Path) -> None:
    """Remove the directory of a job that left nothing in it, and those above it, below the working one, that are empty
    then.
    """
    with suppress(OSError):  # of the first that holds something
        for place in (directory, *(above for above in directory.parents if Path.cwd() in above.parents)):
            if place.exists():
                place.rmdir()
