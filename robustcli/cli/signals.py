"""Signals that ask to stop as an exception, for an orderly end."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

from robustcli.utils.stops import asked_again, asked_to_stop, is_stop, note_stop, stop_signals

_WATCH = 0.2  # seconds between looks for the parent
_AGAIN = 0.05  # seconds of computing until a signal that did not stop the process is tried again


@contextmanager
def terminable() -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 raise ``SystemExit(128 + number)``: runs are closed, workers
    end.

    During an import the first of them waits for its end, at most seconds: modules catch what is raised there, to go
    on without what they import, so that the signal would be lost or become an error of its own. One that was swallowed,
    as in a ``__del__``, is raised again, at the end of the context at the latest; a second one does not wait, and a
    second Ctrl-C ends the process at once. Former handlers are restored. Python allows handlers in the main thread
    only; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    interrupted: float | None = None  # when Ctrl-C asked first
    tried_again = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        first = asked_to_stop() is None
        if not tried_again and asked_again(number, interrupted):
            return
        if number == signal.SIGINT and interrupted is None:
            interrupted = time.monotonic()
        note_stop(number)
        signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        if not (first and _imports(frame)):
            raise SystemExit(128 + number)

    def try_again(_: int, frame: FrameType | None) -> None:
        number = asked_to_stop()
        if number is None:
            return
        signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        handled = sys.exception()
        if _imports(frame) or (handled is not None and is_stop(handled)):  # runs are being closed
            return
        nonlocal tried_again
        tried_again = True
        try:
            signal.raise_signal(signal.Signals(number))  # to the handler of now, which may be that of a training
        finally:
            tried_again = False

    def unraisable(ignored: Any) -> None:
        # Python prints what a destructor or a callback raises, and goes on: what is raised there comes again.
        if ignored.exc_value is None or not is_stop(ignored.exc_value):
            told(ignored)

    told, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.signal(number, stop) for number in stop_signals()}
    before[signal.SIGVTALRM] = signal.signal(signal.SIGVTALRM, try_again)
    try:
        yield
        if (swallowed := asked_to_stop()) is not None:
            raise SystemExit(128 + swallowed)
    finally:
        if asked_to_stop() is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = told


@cache
def end_with_parent() -> None:
    """Let a worker of joblib end soon after the process that started it; elsewhere nothing changes.

    A process that is killed has no time to stop its workers, which would go on with their jobs, hold the directories,
    and wait minutes for others.
    """
    worker = multiprocessing.current_process()
    if not type(worker).__name__.startswith("Loky"):
        return
    parent = getattr(worker, "_parent_pid", os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        while True:  # a training saves its state first, and its worker then waits for another job
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_WATCH)

    threading.Thread(target=watch, daemon=True).start()


def _imports(frame: FrameType | None) -> bool:
    """True where ``frame`` runs inside of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
