"""Exceptions that end a command with one sentence in place of a traceback."""

from collections.abc import Iterator


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the key, the value, what was expected and the remedy.

    The command line prints ``error: <sentence>`` and exits with code 2, without a traceback.
    """


class SuspectClaim(Exception):
    """Robust figures that ``diagnostics=strict`` refuses: all results are written, and the exit code is 1."""


def wrong_type(name: str, error: Exception) -> UserError:
    """The `UserError` for an object ``name`` whose constructor raised ``error`` over its settings."""
    return UserError(f"{name} cannot be made of its settings; is one of the wrong type? ({error})")


def user_error_in_chain(error: BaseException) -> UserError | None:
    """The first `UserError` in the chain of causes of ``error``, or None; Hydra wraps the errors of constructors."""
    return next((seen for seen in causes(error) if isinstance(seen, UserError)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The chain of explicit causes, from ``error`` itself to the first raised."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
