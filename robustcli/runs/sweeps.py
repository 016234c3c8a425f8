"""A sweep on the disk: the jobs that were asked for (``jobs.json``), and what became of each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from robustcli.utils import files, locks
from robustcli.utils.errors import UserError

DONE, FAILED, RUNNING, STOPPED, WAITING = STATES = ("done", "failed", "running", "stopped", "waiting")
_JOBS = "jobs.json"


@dataclass(frozen=True)
class SweepJob:
    """A job that a sweep was asked for.

    Attributes:
        number: from 0, in the order of the sweeper.
        directory: of its run, relative to that of the sweep.
        overrides: its own and those of all jobs, as its run records them.
    """

    number: int
    directory: str
    overrides: Sequence[str]


def is_sweep(directory: Path) -> bool:
    """True of the directory of a sweep, whether one of its jobs has begun or not."""
    return any((directory / name).is_file() for name in ("multirun.yaml", _JOBS))


def state_of(job: Path) -> str:
    """One of `STATES` of the directory of a job: *stopped* began and does not run, *waiting* has not begun.

    A job that another machine runs is *running* where the file system passes locks on (NFS 4, Lustre with ``flock``),
    else *stopped*.
    """
    if (job / "DONE").exists():
        return DONE
    if locks.held(job / ".lock"):
        return RUNNING
    if (job / "FAILED").exists():
        return FAILED
    return STOPPED if (job / "config.yaml").exists() else WAITING


def write_jobs(directory: Path, jobs: Sequence[SweepJob]) -> None:
    """Write the jobs of the sweep in ``directory``."""
    files.write_json(directory / _JOBS, [asdict(job) for job in jobs])


def read_jobs(directory: Path) -> list[SweepJob]:
    """The jobs of the sweep in ``directory``; none of one that an earlier version began.

    Raises:
        UserError: the list is damaged.
    """
    path = directory / _JOBS
    if not path.is_file():
        return []
    try:
        return [
            SweepJob(int(job["number"]), str(job["directory"]), [str(word) for word in job["overrides"]])
            for job in files.read_json(path)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): remove it, and resume the sweep") from error
