"""Locks between processes: flock on a file that stays, which the kernel releases when its holder is killed.

filelock, from 4.2.1 on, opens the file with O_NOFOLLOW, truncates nothing (older ones wipe the target of a hard link)
and closes the descriptor in a forked child: workers that outlive a killed parent do not keep its lock.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from robustcli.utils.errors import UserError, lacks_room

_GLANCE = 0.2  # seconds in which `held`, which takes a lock for a moment, has looked


def take(path: Path, *, busy: Callable[[str], str] | None = None) -> FileLock:
    """The lock at ``path``, signed and held until its ``release()`` or the end of this process.

    Args:
        path: of the lock file, made if absent.
        busy: from the holder, ``process <pid> on <host>``, the sentence where another has it; None: wait for it.

    Raises:
        UserError: another holds the lock; or ``path`` cannot be locked, as where it is a link, symbolic or hard, whose
            target is left as it is.
    """
    # A preserved file also rules out filelock's soft lock, which holds as long as its file is there: a kill leaves it.
    lock = FileLock(path, thread_local=False, preserve_lock_file=True, on_acquired=_sign)
    try:
        lock.acquire(timeout=-1 if busy is None else _GLANCE, poll_interval=0.05)
    except Timeout:
        assert busy is not None
        raise UserError(busy(_holder(path))) from None
    except OSError as error:
        if lacks_room(error):
            raise UserError(f"{path} cannot be written ({error.strerror}): make room there") from error
        link = path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
        reason = "it is a link to another file" if link else error.strerror
        raise UserError(
            f"{path} cannot be locked ({reason}): remove it, or work in a directory that you may write to"
        ) from error
    return lock


def held(path: Path) -> bool:
    """True where a process holds the lock at ``path``, as far as the file system tells."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context that waits for the lock at ``path`` and holds it.

    Raises:
        UserError: ``path`` cannot be locked, see :func:`take`.
    """
    lock = take(path)
    try:
        yield
    finally:
        lock.release()


def _sign(descriptor: int) -> None:
    # The descriptor is checked, not the path: a link may be put at the path between its check and its use.
    if os.fstat(descriptor).st_nlink > 1:
        raise OSError("the lock file has another name")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:200].strip() or "another process"
