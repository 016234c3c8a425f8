"""Signals that ask to stop as an exception, for an orderly end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robustcli.utils.stops import stop_signals

_AGAIN = 0.01  # seconds of computing until a signal that met an import is tried again


@contextmanager
def terminable() -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM and SIGHUP raise ``SystemExit(128 + number)``: runs are closed, workers end.

    During an import the first of them waits for its end, at most seconds: modules catch what is raised there, to go
    on without what they import, so that the signal would be lost or become an error of its own. A second one does not
    wait. The former handlers are restored. Python allows handlers in the main thread only; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if _imports(frame) and not waiting:
            waiting.append(number)
            signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        else:
            raise SystemExit(128 + number)

    def try_again(_number: int, frame: FrameType | None) -> None:
        if waiting and _imports(frame):
            signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN)
        elif waiting:
            signal.raise_signal(signal.Signals(waiting[0]))  # to the handler of now, which may be that of a training

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    before[signal.SIGVTALRM] = signal.signal(signal.SIGVTALRM, try_again)
    try:
        yield
    finally:
        if waiting:
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
