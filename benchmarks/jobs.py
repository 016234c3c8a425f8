"""Commands that make a study, each with a directory of its own, so that a stopped study goes on where it was."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A command, and the directory of its run below that of the study."""

    place: str
    words: Sequence[str]


def run(job: Job, out: Path) -> None:
    """The job to its end, from where it was stopped; nothing where it is done.

    Raises:
        SystemExit: it failed.
    """
    place = out / job.place
    if (place / "DONE").exists():
        return
    command, *words = job.words
    begun = (place / "config.yaml").exists()
    words = [f"resume={place}"] if begun else [*words, f"hydra.run.dir={quoted(place)}"]
    begin = time.monotonic()
    place.parent.mkdir(parents=True, exist_ok=True)
    log = out / "logs" / f"{job.place.replace('/', '_')}.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as file:
        code = subprocess.run(
            [sys.executable, "-m", "robustcli", command, *words], stdout=file, stderr=file, check=False
        ).returncode
    if code:
        raise SystemExit(f"{job.place} ended with code {code}: see {log}; what is done stays, start the same again")
    print(f"{job.place}: {time.monotonic() - begin:.0f} s", flush=True)


def run_all(jobs: Sequence[Job], out: Path, workers: int) -> None:
    """All jobs, ``workers`` at a time; the first that fails keeps those that did not begin from beginning."""
    with ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(run, job, out) for job in jobs]
        try:
            for each in pending:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def quoted(place: Path) -> str:
    """``place`` as an override takes it, whatever its characters."""
    return f"'{place}'"
