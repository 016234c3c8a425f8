"""Cache folder for reproducible intermediates: rendered sets, decoded images, word candidates."""

import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from robustcli.utils.errors import UserError
from robustcli.utils.files import TEMPORARY

_REMEDY = "set the environment variable ROBUSTCLI_CACHE to a folder that can be written to"
_STALE = 24 * 3600.0  # seconds without a write, after which nobody is at work on a temporary file


def cache_root() -> Path:
    """``$ROBUSTCLI_CACHE``, or else the platform's cache (``~/.cache/robustcli``)."""
    return Path(os.environ.get("ROBUSTCLI_CACHE") or user_cache_path("robustcli", appauthor=False))


def cache_directory(*parts: str) -> Path:
    """A folder under `cache_root`, made if absent.

    Raises:
        UserError: it cannot be made.
    """
    directory = cache_root().joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache {directory} cannot be made ({error.strerror}): {_REMEDY}") from error
    return directory


def unreadable(path: Path) -> UserError:
    """The sentence on what another user keeps in a shared cache for himself."""
    return UserError(f"{path} cannot be read (Permission denied): ask its owner for the right to read it, or {_REMEDY}")


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Context of writes to a folder of the cache; an `OSError` becomes a sentence with the folder and the remedy.

    Raises:
        UserError: no room, or no right to write there.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"the cache {directory} cannot be written (Permission denied): {_REMEDY}")
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)  # numpy tells a full disk by the bytes that it could write
        raise UserError(f"the cache {directory} cannot be written ({reason}): make room there, or {_REMEDY}") from error


def temporary_folder(place: Path) -> Path:
    """A new folder beside ``place``, to be renamed to it; named by this machine, see `remove_leftovers`.

    Others may read what stands in it, as far as the umask allows: a cache may be shared.
    """
    folder = place.with_name(f"{_prefix(place)}{os.getpid()}-{secrets.token_hex(3)}")
    folder.mkdir()
    return folder


def remove_leftovers(place: Path) -> None:
    """Remove what killed writers left beside ``place``, whose lock this process holds.

    Those are the temporary folders of ``place`` made on this machine, and any temporary file or folder without a write
    for a day: another machine, which the lock may not reach, could still be at work on others.
    """
    for left in leftovers(place.parent):
        if left.name.startswith(_prefix(place)) or time.time() - _last_write(left) > _STALE:
            _remove(left)


def leftovers(directory: Path) -> list[Path]:
    """Temporary files and folders of writers in a folder of the cache, alive or killed."""
    return sorted(directory.glob(f"{TEMPORARY}*"))


def _prefix(place: Path) -> str:
    machine = re.sub(r"[^A-Za-z0-9]", "_", platform.node())
    return f"{TEMPORARY}{place.name}-{machine}-"


def _last_write(path: Path) -> float:
    """Seconds since the epoch; now for what is gone."""
    with suppress(OSError):
        return max(each.stat().st_mtime for each in (path, *path.glob("*")))
    return time.time()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
