"""Exceptions that end a command with one sentence in place of a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# What torch says of sizes beyond the machine, of a CPU and of a GPU.
_NO_MEMORY = ("t allocate memory", "Storage size calculation overflowed", "out of memory")

# What safetensors and torch say of a full disk, in errors that are none of the system's.
_NO_ROOM = ("No space left on device", "iostream error", "PytorchStreamWriter failed writing")


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the key, the value, what was expected and the remedy.

    The command line prints ``error: <sentence>`` and exits with code 2, without a traceback.
    """


class SuspectClaim(Exception):
    """Robust figures that ``diagnostics=strict`` refuses: all results are written, and the exit code is 1."""


class LostProcess(RuntimeError):
    """A process of several that ended before its work, by a signal or for want of memory."""


@contextmanager
def constructor_errors(name: str) -> Iterator[None]:
    """Context in which an error over settings, files, folders or memory becomes a `UserError`, and others pass.

    Args:
        name: of the object that is made, for the message.
    """
    try:
        yield
    except Exception as error:
        said = translated(name, error)
        if said is error:
            raise
        raise said from error


def translated(name: str, error: BaseException) -> BaseException:
    """A `UserError` for what the constructor of ``name`` raised over settings, files or memory; else ``error``.

    Reason and path stay in the sentence. Any other error, of a library's inside, is no mistake of a user.
    """
    if mistake := user_error_in_chain(error):
        return mistake
    if isinstance(error, OSError):
        return UserError(f"{name} cannot be made: {reason_of(error)}")
    if isinstance(error, TypeError | ValueError):
        told = (str(error).strip().splitlines() or [""])[0]
        return UserError(f"{name} cannot be made of its settings ({type(error).__name__}: {told})")
    if lacks_memory(error):
        return UserError(f"{name} needs more memory than there is: lower the sizes in its settings.")
    return error


def lacks_memory(error: BaseException) -> bool:
    """True where ``error`` says that the machine, or its GPU, has no memory left."""
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return said or isinstance(error, MemoryError)


def lacks_room(error: BaseException) -> bool:
    """True where a full disk, or a used up quota, is behind ``error``."""
    return any(
        (isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(seen) for text in _NO_ROOM)
        for seen in behind(error)
    )


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


def behind(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that led to it, each once: causes, and exceptions during whose handling the next was raised.

    A cause that is raised in place of what it had caused leads back to itself.
    """
    seen: BaseException | None = error
    known: list[BaseException] = []
    while seen is not None and not any(seen is one for one in known):
        yield seen
        known.append(seen)
        seen = seen.__cause__ or seen.__context__
