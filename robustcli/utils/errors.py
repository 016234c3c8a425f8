"""What ends a command with a sentence in place of a traceback."""

from collections.abc import Iterator


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the key, the value, what was expected and the remedy.

    The command line prints ``error: <sentence>`` and exits with code 2, without a traceback.
    """


class SuspectClaim(Exception):
    """Numbers that ``diagnostics=strict`` does not let pass: all is written, and the exit code is 1."""


def wrong_type(name: str, error: Exception) -> UserError:
    """The user's mistake where what is called ``name`` could not be made of its settings, over ``error``."""
    return UserError(f"{name} cannot be made of its settings; is one of the wrong type? ({error})")


def user_error_in_chain(error: BaseException) -> UserError | None:
    """The user's mistake: ``error`` itself, or what it was raised from (Hydra wraps errors of constructors)."""
    return next((seen for seen in causes(error) if isinstance(seen, UserError)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, what it was raised from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
