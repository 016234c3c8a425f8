"""Signals that ask to stop as an exception, for an orderly end."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robustcli.utils.stops import stop_code, stop_signals

_AGAIN = 0.05  # seconds of computing until a signal that did not stop the process is tried again


@contextmanager
def terminable() -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM and SIGHUP raise ``SystemExit(128 + number)``: runs are closed, workers end.

    During an import the first of them waits for its end, at most seconds: modules catch what is raised there, to go
    on without what they import, so that the signal would be lost or become an error of its own. One that was swallowed
    is raised again; a second one does not wait. The former handlers are restored. Python allows handlers in the main
    thread only; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        first = not asked
        asked[:] = [number]
        signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        if not (first and _imports(frame)):
            raise SystemExit(128 + number)

    def try_again(_number: int, frame: FrameType | None) -> None:
        if not asked:
            return
        signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        handled = sys.exception()
        if _imports(frame) or (handled is not None and stop_code(handled) is not None):  # runs are being closed
            return
        signal.raise_signal(signal.Signals(asked[0]))  # to the handler of now, which may be that of a training

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    before[signal.SIGVTALRM] = signal.signal(signal.SIGVTALRM, try_again)
    try:
        yield
    finally:
        if asked:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """True where ``frame`` runs inside of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
