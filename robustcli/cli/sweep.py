"""Jobs of a sweep, where any sweeper hands them to any launcher: which are still to be done, and their outcomes."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from robustcli import __version__
from robustcli.cli.submitted import LOGS, check_launcher, is_lost, wait_for_earlier
from robustcli.config.overrides import quoted
from robustcli.config.unread import recorded_words
from robustcli.runs.manifest import check_ours, check_same
from robustcli.runs.sweeps import DONE, FAILED, WAITING, SweepJob, state_of, write_jobs
from robustcli.utils import files, locks
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import plain
from robustcli.utils.stops import stop_code
from robustcli.utils.world import world_of

_LOCK = ".sweep.lock"  # the lock ``.lock`` is that of the table, which is held for a moment


@dataclass
class Outcomes:
    """Jobs of a sweep: how many were asked for, and those that failed or never ended.

    Attributes:
        command: as typed, for the lines that say how to go on.
        directory: of the sweep; None: there was none.
        jobs: those asked for.
        failed: numbers of those that failed, in this session or in an earlier one.
        lost: numbers of those without a result, such as one whose process was killed.
    """

    command: str
    directory: Path | None = None
    jobs: list[SweepJob] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def add(self, planned: "_Planned", result: JobReturn) -> JobReturn:
        """Count the job ``planned`` by its ``result``; returns that, or NaN in its place, which a sweeper can read."""
        if result.status is JobStatus.FAILED:  # it raised what `Job` does not make a NaN of
            _say(f"error: job {planned.job.number}: {result._return_value}")
        if _succeeded(result):
            return result
        (self.failed if state_of(planned.place) == FAILED else self.lost).append(planned.job.number)
        return _result(math.nan)

    def close(self) -> bool:
        """True unless a job of a sweep has no result; then they are printed, with the words that do them again.

        Raises:
            UserError: a sweep without a job.
        """
        if self.directory is not None and not self.jobs:
            raise UserError(
                "the sweep has no job: a key has no value to run with, such as a glob(...) that matches nothing; write "
                "the values out, or check what it should match."
            )
        again = f"robustcli {self.command} resume={self.directory}"
        if self.failed:
            _say(
                f"error: {_jobs(self.failed)} of the sweep failed; see FAILED in each directory under "
                f"{self.directory}, and do them again with: {again} retry=failed"
            )
        if self.lost:
            logs = self.directory / LOGS if self.directory is not None else Path(LOGS)
            why = f" (what Slurm said stands in {logs})" if logs.is_dir() else ""
            _say(f"error: {_jobs(self.lost)} of the sweep ended without a result{why}; go on with: {again}")
        return not (self.failed or self.lost)


class _Planned(NamedTuple):
    """A job of a sweep, where it works, and what Hydra composes it of.

    ``state`` is one of `STATES`; waiting too where another job failed in its place without results.
    """

    job: SweepJob
    place: Path
    overrides: Sequence[str]
    state: str


@contextmanager
def counted(command: str, *, retry: bool = False) -> Iterator[Outcomes]:
    """Context in which the jobs of a sweep are counted, by whatever sweeper and launcher, in this process or others.

    Jobs that are done are not launched again, nor those that failed, unless ``retry`` asks for them: `Outcomes` tells
    them. The directory of the sweep is claimed meanwhile.

    Args:
        command: as typed, for the lines that say how to go on.
        retry: do the jobs again that failed.

    Raises:
        UserError: another sweep works on the directory, or it holds something that is no sweep, or jobs of another
            config, command or version of robustcli; or torchrun or srun have started it several times.
    """
    outcomes, plugins = Outcomes(command), Plugins.instance()
    instantiate = plugins.instantiate_launcher

    def counting(hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        if (world := world_of()) is not None:
            world.refuse(
                "which share one training and no sweep: start a sweep alone, and give trainer.devices=2 for two "
                "processes of each job."
            )
        check_launcher(command, config.hydra.launcher)
        launcher = instantiate(hydra_context=hydra_context, task_function=task_function, config=config)
        outcomes.directory = Path(str(config.hydra.sweep.dir))
        sweep = outcomes.directory.absolute()
        claims.enter_context(_claimed(sweep))
        launch = launcher.launch

        def run(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            composed = hydra_context.config_loader.load_sweep_config
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            wait_for_earlier(sweep)
            planned = [
                _plan(command, composed(config, list(overrides)), number, overrides)
                for number, overrides in zip(numbers, job_overrides, strict=True)
            ]
            outcomes.jobs += [each.job for each in planned]
            write_jobs(sweep, outcomes.jobs)
            kept = {DONE} if retry else {DONE, FAILED}
            results = _launched(launch, sweep, planned, [each for each in planned if each.state not in kept])
            return [outcomes.add(each, result) for each, result in zip(planned, results, strict=True)]

        launcher.launch = run  # type: ignore[method-assign]
        return launcher

    plugins.instantiate_launcher = counting  # type: ignore[method-assign]
    try:
        with ExitStack() as claims, _whole_saves():
            yield outcomes
    except BaseException as error:
        if stop_code(error) and outcomes.directory is not None and (outcomes.directory / "multirun.yaml").is_file():
            with suppress(OSError):  # of a terminal that was closed
                _say(f"go on with: robustcli {command} resume={outcomes.directory}")
        raise
    finally:
        del plugins.instantiate_launcher  # the method of the class shows again


def _launched(
    launch: Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]],
    sweep: Path,
    planned: Sequence[_Planned],
    todo: Sequence[_Planned],
) -> list[JobReturn]:
    """The results of all ``planned`` jobs of ``sweep``, of which those of ``todo`` alone are launched."""
    words = [each.overrides for each in todo]
    if len(todo) < len(planned):  # a launcher counts what it gets: the directories, named by the number, are given
        words = [[*each.overrides, f"hydra.sweep.subdir={quoted(each.job.directory)}"] for each in todo]
    try:
        results = list(launch(words, planned[0].job.number)) if todo else []
    except Exception as error:
        if not is_lost(error):
            raise
        wait_for_earlier(sweep)  # the others go on
        results = [_recorded(each.place) for each in todo]
    found = dict(zip((each.job.number for each in todo), results, strict=False))
    begun = {each.job.number for each in todo}
    return [
        found.get(each.job.number, _result(math.nan)) if each.job.number in begun else _recorded(each.place)
        for each in planned
    ]


def _recorded(place: Path) -> JobReturn:
    """The result of a job as its directory has it: a number, or NaN where it has none."""
    done = state_of(place) == DONE
    return _result(files.read_json(place / "metrics.json")["objective"] if done else math.nan)


def _result(objective: float) -> JobReturn:
    result = JobReturn()
    result.status, result.return_value = JobStatus.COMPLETED, objective
    return result


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


def _plan(command: str, config: DictConfig, number: int, overrides: Sequence[str]) -> _Planned:
    """The job ``number`` of a sweep, whose directory is absent, or holds the same job from an earlier start of it.

    Args:
        config: of the job, with Hydra's own node, as Hydra composes it.

    Raises:
        UserError: the directory holds a job of another config, command or version.
    """
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)  # in which the subdirectory, and settings of the job, may be interpolated
    try:
        subdirectory = str(config.hydra.sweep.subdir)
        place = Path(str(config.hydra.sweep.dir)).absolute() / subdirectory
        job = SweepJob(number, subdirectory, recorded_words(config))
        if (place / "config.yaml").is_file():
            with read_write(config), open_dict(config):
                del config["hydra"]
            check_ours(place)
            _check_version(place)
            same = check_same(place, command, plain(OmegaConf.to_container(config, resolve=True)))
        else:  # refused before it began, it left its words
            same = (place / "overrides.yaml").is_file() and files.read_yaml(place / "overrides.yaml") == job.overrides
        return _Planned(job, place, overrides, state_of(place) if same else WAITING)
    except UserError as error:
        raise UserError(f"job {number} of the sweep: {error}") from error
    finally:
        holder.cfg = before


def _check_version(job: Path) -> None:
    begun = files.read_json(job / "manifest.json")["code"]
    version = begun.get("version") if isinstance(begun, dict) else None
    if version != __version__:
        raise UserError(
            f"{job} was begun by robustcli {version}, and this is {__version__}: a table would mix the two; go on with "
            f"that version (pip install robustcli=={version}), or begin another sweep"
        )


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


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _jobs(numbers: Sequence[int]) -> str:
    return f"job{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _succeeded(result: JobReturn) -> bool:
    # The objective of a run is a finite number; `Job` returns NaN for one that failed.
    return result.status is JobStatus.COMPLETED and math.isfinite(result.return_value)
