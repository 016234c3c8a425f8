"""Outcomes of the jobs of a sweep, counted where any sweeper hands its jobs to any launcher."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from robustcli.runs.manifest import check_ours, check_same
from robustcli.utils import files, locks
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import plain
from robustcli.utils.stops import stop_code

_LOCK = ".sweep.lock"  # the lock ``.lock`` is that of the table, which is held for a moment


@dataclass
class Outcomes:
    """Jobs of a sweep: how many were asked for, and those that failed or never ran.

    Attributes:
        directory: of the sweep; None: there was none.
        jobs: number asked for.
        failed: numbers of those without a result, or with a bad one.
    """

    directory: Path | None = None
    jobs: int = 0
    failed: list[int] = field(default_factory=list)

    def add(self, results: Sequence[JobReturn], numbers: Sequence[int]) -> None:
        """Count jobs by their ``numbers``; a launcher gives the ``results`` in that order."""
        self.jobs += len(numbers)
        succeeded = [number for number, result in zip(numbers, results, strict=False) if _succeeded(result)]
        self.failed += sorted(set(numbers) - set(succeeded))

    def close(self) -> bool:
        """True unless a job of a sweep failed; then they are printed.

        Raises:
            UserError: a sweep without a job.
        """
        if self.directory is not None and not self.jobs:
            raise UserError(
                "the sweep has no job: a key has no value to run with, such as a glob(...) that matches nothing; write "
                "the values out, or check what it should match."
            )
        if self.failed:
            which = "job" if len(self.failed) == 1 else "jobs"
            print(
                f"error: {which} {', '.join(map(str, self.failed))} of the sweep failed; see FAILED in each directory "
                f"under {self.directory}",
                file=sys.stderr,
            )
        return not self.failed


@contextmanager
def counted(command: str) -> Iterator[Outcomes]:
    """Context in which the jobs of a sweep are counted, by whatever sweeper and launcher, in this process or others.

    Directories are no evidence: one may hold what an earlier sweep left, and a job that never ran has none. The
    directory of the sweep is claimed meanwhile.

    Args:
        command: as typed, for the line that says how to go on after a stop.

    Raises:
        UserError: another sweep works on the directory, or it holds something that is no sweep, or jobs of another
            config or command.
    """
    outcomes, plugins = Outcomes(), Plugins.instance()
    instantiate = plugins.instantiate_launcher

    def counting(hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        launcher = instantiate(hydra_context=hydra_context, task_function=task_function, config=config)
        outcomes.directory = Path(str(config.hydra.sweep.dir))
        claims.enter_context(_claimed(outcomes.directory.absolute()))
        launch = launcher.launch

        def run(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            for number, overrides in zip(numbers, job_overrides, strict=True):
                _check_job(command, hydra_context.config_loader.load_sweep_config(config, list(overrides)), number)
            results = launch(job_overrides, initial_job_idx)
            outcomes.add(results, numbers)
            return results

        launcher.launch = run  # type: ignore[method-assign]
        return launcher

    plugins.instantiate_launcher = counting  # type: ignore[method-assign]
    try:
        with ExitStack() as claims, _whole_saves():
            yield outcomes
    except BaseException as error:
        if stop_code(error) and outcomes.directory is not None and (outcomes.directory / "multirun.yaml").is_file():
            with suppress(OSError):  # of a terminal that was closed
                print(f"go on with: robustcli {command} resume={outcomes.directory}", file=sys.stderr, flush=True)
        raise
    finally:
        del plugins.instantiate_launcher  # the method of the class shows again


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Context that holds the lock of a sweep in ``directory``, made if absent."""
    held = list(directory.iterdir()) if directory.is_dir() else []
    if link := next((path for path in held if path.is_symlink() and path.name != _LOCK), None):
        raise UserError(f"{link} is a link, which a sweep does not write through: remove it, or name another directory")
    if held and not {_LOCK, "multirun.yaml"} & {path.name for path in held}:
        raise UserError(
            f"{directory} is not empty and holds no sweep (such as {held[0].name}): name another directory with "
            "hydra.sweep.dir"
        )
    directory.mkdir(parents=True, exist_ok=True)
    lock = locks.take(
        directory / _LOCK,
        busy=lambda holder: f"{directory} is being worked on by {holder}: wait until it ends, or name another one",
    )
    record = directory / "multirun.yaml"
    try:
        files.remove_temporaries(directory, deep=False)  # those of a job are removed as it is opened
        known = record.read_text(encoding="utf-8") if record.is_file() else None
        try:
            yield
        except UserError:  # before its first job, by `_check_job`: Hydra has put the record of this sweep there
            if known is not None and record.read_text(encoding="utf-8") != known:
                files.write_text(record, known)
            raise
    finally:
        lock.release()


def _check_job(command: str, config: DictConfig, number: int) -> None:
    """Check that the directory of a job of a sweep is absent, or holds the same job from an earlier start of it.

    Args:
        config: of the job, with Hydra's own node, as Hydra composes it.

    Raises:
        UserError: it holds a job of another config or command.
    """
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)  # in which the subdirectory, and settings of the job, may be interpolated
    try:
        directory = Path(str(config.hydra.sweep.dir)).absolute() / str(config.hydra.sweep.subdir)
        if not (directory / "config.yaml").is_file():
            return
        with read_write(config), open_dict(config):
            del config["hydra"]
        check_ours(directory)
        check_same(directory, command, plain(OmegaConf.to_container(config, resolve=True)))
    except UserError as error:
        raise UserError(f"job {number} of the sweep: {error}") from error
    finally:
        holder.cfg = before


@contextmanager
def _whole_saves() -> Iterator[None]:
    """Context in which Hydra writes its YAML whole or not at all.

    A kill, or a disk without room, would else leave an empty ``multirun.yaml`` in the place of that by which a sweep is
    resumed.
    """
    save = OmegaConf.save

    def whole(config: Any, f: str | Path | IO[Any], resolve: bool = False) -> None:
        if isinstance(f, str | Path):
            with files.atomic(Path(f)) as temporary:
                save(config, temporary, resolve)
        else:
            save(config, f, resolve)

    OmegaConf.save = staticmethod(whole)  # type: ignore[method-assign]
    try:
        yield
    finally:
        OmegaConf.save = staticmethod(save)  # type: ignore[method-assign]


def _succeeded(result: JobReturn) -> bool:
    # The objective of a run is a finite number; `Job` returns NaN for one that failed.
    return result.status is JobStatus.COMPLETED and math.isfinite(result.return_value)
