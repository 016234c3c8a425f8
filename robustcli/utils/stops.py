"""Signals that ask a process to stop, and exceptions that they have become."""

import signal

from robustcli.utils.errors import behind


def stop_signals() -> list[int]:
    """Ctrl-C, SIGTERM and SIGHUP (a terminal that was closed), but for those that are ignored, as under ``nohup``."""
    asked = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


def stop_code(error: BaseException) -> int | None:
    """The exit code, 128 and the number of the signal, if a signal is behind ``error``; else None.

    A library may turn the exception of a signal into one of its own, of which it is the cause or the context then.
    """
    for seen in behind(error):
        if isinstance(seen, KeyboardInterrupt):
            return 128 + signal.SIGINT
        if isinstance(seen, SystemExit) and isinstance(seen.code, int) and seen.code > 128:
            return seen.code
    return None
