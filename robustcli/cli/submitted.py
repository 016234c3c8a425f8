"""Jobs of a sweep that submitit hands to Slurm: what they may ask for, how they give way, and those still in its queue.

Slurm sends SIGTERM where it ends a job: it is saved, and Slurm itself puts it back into the queue after a preemption or
``scontrol requeue``. submitit has Slurm send SIGUSR2 before the time limit: the job is saved and puts itself back.
"""

import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustcli.cli.signals import terminable
from robustcli.utils.errors import UserError
from robustcli.utils.stops import requeue_signal

_LOOK = 2.0  # seconds between looks into the queue
LOGS = ".submitit"  # the launcher's own, in the directory of the sweep: a folder a job, named by its number in Slurm


@contextmanager
def requeued() -> Iterator[None]:
    """Context of a job: in Slurm it is stopped in order by a signal, saved, and put back into the queue.

    submitit's handler of its signal would requeue in the middle of a step and raise there, which is a failure to a run:
    here it is called after the run was closed. It counts the time limits that were met (``max_num_timeout``) and raises
    where they are used up. Outside of submitit nothing changes.
    """
    number = requeue_signal()
    if number is None:
        yield
        return
    requeue = signal.getsignal(number)
    try:
        with terminable():
            yield
    except SystemExit as error:
        if error.code == 128 + number and callable(requeue):
            try:
                requeue(number, None)
            except Exception as why:
                raise UserError(
                    f"it was saved, but not put back into the queue of Slurm ({why}): hydra.launcher.max_num_timeout "
                    "is how many time limits a job may meet"
                ) from why
        raise


def check_launcher(command: str, launcher: Any) -> None:
    """Check that ``command`` can run as ``launcher``, the node ``hydra.launcher``, says.

    Raises:
        UserError: several tasks for a command that works in one, or no Slurm.
    """
    if not str(launcher.get("_target_", "")).endswith(".SlurmLauncher"):
        return
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm: no sbatch was found, so this is no machine of a Slurm cluster: start it on "
            "one, or take hydra/launcher=joblib"
        )
    tasks = int(launcher.get("nodes") or 1) * int(launcher.get("tasks_per_node") or 1)
    if tasks > 1 and not command.startswith("train-"):
        raise UserError(
            f"hydra.launcher asks for {tasks} tasks a job, but {command} works in one: set hydra.launcher.nodes=1 "
            f"hydra.launcher.tasks_per_node=1, and for {tasks} processes side by side processes={tasks} "
            f"hydra.launcher.cpus_per_task={tasks}"
        )


def is_lost(error: Exception) -> bool:
    """True where submitit raised for a job that left no result, and not for one that Slurm did not take.

    Raises:
        UserError: Slurm did not take the jobs; with its own words.
    """
    if type(error).__module__.partition(".")[0] != "submitit":
        return False
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("sbatch: ")]
    if lines:
        why = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines)
        raise UserError(f"Slurm did not take the jobs: {why} (see hydra.launcher in --cfg hydra)") from error
    return True


def wait_for_earlier(sweep: Path) -> None:
    """Wait for the jobs of a sweep that are in Slurm's queue, or run, though the process that submitted them is gone.

    Submitted again they would stand in the queue twice, and one would find its directory taken.
    """
    told = False
    while waiting := _in_slurm(sweep):
        if not told:
            print(f"waiting for jobs of this sweep that are in Slurm still: {', '.join(waiting)}", flush=True)
            told = True
        time.sleep(_LOOK)
    _remove_pickles(sweep / LOGS)


def _remove_pickles(folder: Path) -> None:
    """Remove what earlier sessions left for submitit, which unpickles what it finds under the number of a new job: in
    the directory of another that may be anybody's. Logs stay.
    """
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink() or (path.suffix == ".pkl" and path.is_file()):
                path.unlink()


def _in_slurm(sweep: Path) -> list[str]:
    """Numbers, such as ``12_0``, of the jobs of a sweep that Slurm holds; none where there is no Slurm."""
    folder = sweep / LOGS
    known = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not known or shutil.which("squeue") is None:
        return []
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise UserError(f"Slurm cannot be asked for the jobs of {sweep} ({error.stderr.strip()}): try later") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"Slurm did not answer within a minute, for the jobs of {sweep}: try later") from error
    return sorted(known & set(listed.split()))
