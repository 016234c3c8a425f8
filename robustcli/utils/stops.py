"""Signals that ask a process to stop, and exceptions that they have become."""

import os
import signal
import sys
import time
from contextlib import suppress

from robustcli.utils.errors import behind

_SAME = 0.5  # seconds within which two Ctrl-C are one


def requeue_signal() -> int | None:
    """The signal by which submitit learns, in its job, that Slurm takes the place of the job; None elsewhere."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)


def stop_signals() -> list[int]:
    """Ctrl-C, SIGTERM, SIGHUP (a terminal that was closed), SIGUSR1, by which a batch system warns of the end of a job,
    and, in a job of submitit, its own (`requeue_signal`); but for those that are ignored, as under ``nohup``, and a
    SIGUSR1 that another program handles.
    """
    asked: list[int] = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    handler = signal.getsignal(signal.SIGUSR1)
    if handler is signal.SIG_DFL or str(getattr(handler, "__module__", "")).startswith("robustcli."):
        asked.append(signal.SIGUSR1)
    if (requeue := requeue_signal()) is not None:
        asked = list(dict.fromkeys([*asked, requeue]))
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


# The number of the last signal that asked this process to stop, while it is being stopped: a state of the process, as
# its handlers are. Without it an error of C code in place of a signal's exception, which has no context, would be told.
_asked: list[int] = []


def note_stop(number: int | None) -> None:
    """Remember that the signal ``number`` asked to stop; None: forget it."""
    _asked[:] = [] if number is None else [number]


def asked_again(number: int, first: float | None) -> bool:
    """End the process at once for the second Ctrl-C: files appear whole or not at all, so that a run can go on from it.

    A terminal and a program around this one may both pass on a single Ctrl-C: True for one within half a second of
    ``first``, the time of the one before (`time.monotonic`; None: there was none), which is the same and to be ignored.
    """
    if number != signal.SIGINT or first is None:
        return False
    if time.monotonic() - first < _SAME:
        return True
    with suppress(OSError):
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # which a progress bar has hidden
        os.write(2, f"{show_cursor}stopped at once by a second Ctrl-C\n".encode())
    os._exit(128 + number)


def asked_to_stop() -> int | None:
    """The number of the signal that asked this process to stop, if one did."""
    return _asked[0] if _asked else None


def stop_code(error: BaseException) -> int | None:
    """The exit code, 128 and the number of the signal, if a signal is behind ``error``; else None.

    A library may turn the exception of a signal into one of its own, of which it is the cause or the context then, or
    into one that does not know of it; so any error is that of a signal, once one has asked to stop.
    """
    return _code_in_chain(error) or (128 + _asked[0] if _asked else None)


def is_stop(error: BaseException) -> bool:
    """True where ``error`` itself, or what led to it, is the exception of a signal."""
    return _code_in_chain(error) is not None


def _code_in_chain(error: BaseException) -> int | None:
    for seen in behind(error):
        if isinstance(seen, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(seen, SystemExit) and isinstance(seen.code, int) and seen.code > 128:
            return seen.code
    return None
