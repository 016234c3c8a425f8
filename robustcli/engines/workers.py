"""Processes beside the first one, on this machine: how they load its command anew, and how the end of one is noticed.

They are spawned, never forked: the first process has threads, and perhaps a GPU.
"""

import importlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from robustcli.config import schemas
from robustcli.runs.run import Run
from robustcli.utils.errors import LostProcess, UserError, user_error_in_chain
from robustcli.utils.stops import requeue_signal


class Work(NamedTuple):
    """What a process needs to load the command of the first one again; ``engine``: module of `robustcli.engines`."""

    engine: str
    config: DictConfig
    hydra: Any
    directory: Path

    @classmethod
    def of(cls, run: Run, config: DictConfig, engine: str) -> "Work":
        """That of the job of now."""
        return cls(engine, config, without_types(HydraConfig.instance().cfg), run.directory)

    def begin(self, number: int, end: Callable[[], None]) -> ModuleType:
        """Make this process, number ``number`` from 0, a worker: its engine, ``config`` being as in the first process.

        Args:
            end: called soon after the first process has ended; it ends this one.
        """
        # Ctrl-C, and the signals of a batch system, reach all; the first process ends the others.
        for asked in (signal.SIGINT, signal.SIGUSR1, requeue_signal()):
            if asked is not None:
                signal.signal(asked, signal.SIG_IGN)
        threading.Thread(target=_with_parent, args=(end,), daemon=True).start()
        schemas.register()  # and the resolvers that the config refers to
        HydraConfig.instance().cfg = self.hydra
        take_gpu(self.config, number)
        return importlib.import_module(f"robustcli.engines.{self.engine}")


def without_types(config: Any) -> DictConfig:
    """``config`` as plain mappings, with what its resolvers have answered.

    Hydra loads the modules of its plugins anew, and with them classes such as that of a launcher's node: in a job of
    joblib or submitit they are not those that Python finds by their names, and cannot be pickled.
    """
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(plain, DictConfig)
    OmegaConf.copy_cache(config, plain)
    return plain


@contextmanager
def spawnable() -> Iterator[None]:
    """Context in which processes can be spawned in a worker of joblib too.

    A spawned process is told to take the default way of its parent, which there is joblib's own: it does not know it.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def start_tracker() -> None:
    """Start the process by which Python frees what spawned ones share, deaf to signals that a whole group receives.

    Python itself spares it Ctrl-C and SIGTERM alone; without it there are tracebacks beside the one line of an end.
    """
    signals = {signal.SIGHUP, signal.SIGUSR1, requeue_signal() or signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_gpu(config: DictConfig, number: int) -> None:
    """Give process ``number`` a GPU, in turn, where ``device`` names none."""
    if config.device in ("auto", "cuda") and torch.cuda.is_available():
        config.device = f"cuda:{number % torch.cuda.device_count()}"


def check_alive(processes: Sequence[SpawnProcess], total: int, going_on: str) -> None:
    """Check that no process has failed.

    Args:
        processes: the last ones of ``total``.
        going_on: how a run goes on, for the message.

    Raises:
        LostProcess: one has.
    """
    for number, process in enumerate(processes, total - len(processes) + 1):
        if process.exitcode not in (None, 0):
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            raise LostProcess(
                f"process {number} of {total} was lost ({how}; 9 is often want of memory): {going_on}, if need be with "
                "fewer processes"
            )


def told(error: Exception) -> Exception:
    """``error`` as another process can receive it: a user's mistake, or one line."""
    if mistake := user_error_in_chain(error):
        return UserError(str(mistake))
    first = (str(error).splitlines() or [""])[0]
    return RuntimeError(f"{type(error).__name__}: {first}")


def _with_parent(end: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        end()
