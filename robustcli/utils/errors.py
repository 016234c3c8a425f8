"""Exceptions that end a command with one sentence in place of a traceback."""

import errno
from collections.abc import Iterator


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the key, the value, what was expected and the remedy.

    The command line prints ``error: <sentence>`` and exits with code 2, without a traceback.
    """


class SuspectClaim(Exception):
    """Robust figures that ``diagnostics=strict`` refuses: all results are written, and the exit code is 1."""


def translated(name: str, error: BaseException) -> BaseException:
    """A `UserError` for what the constructor of ``name`` raised over its settings, a file or a folder; else ``error``.

    Reason and path stay in the sentence. Any other error, of memory or of a library's inside, is no mistake of a user.
    """
    if mistake := user_error_in_chain(error):
        return mistake
    if isinstance(error, OSError):
        return UserError(f"{name} cannot be made: {reason_of(error)}")
    if isinstance(error, TypeError | ValueError):
        told = (str(error).strip().splitlines() or [""])[0]
        return UserError(f"{name} cannot be made of its settings ({type(error).__name__}: {told})")
    return error


def reason_of(error: OSError) -> str:
    """Reason, path and remedy of an error of the system."""
    if error.filename is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    remedy = {
        errno.ENOSPC: "make room there",
        errno.EDQUOT: "make room there",
        errno.ENOENT: "correct the path",
    }.get(error.errno or 0, "give another path, or rights to this one")
    return f"{error.filename}: {error.strerror}; {remedy}"


def user_error_in_chain(error: BaseException) -> UserError | None:
    """The first `UserError` in the chain of causes of ``error``, or None; Hydra wraps the errors of constructors."""
    return next((seen for seen in causes(error) if isinstance(seen, UserError)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The chain of explicit causes, from ``error`` itself to the first raised."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
