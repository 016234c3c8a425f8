"""Atomic file writes (temporary name in the same folder, fsync, rename), and readers of JSON and YAML."""

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from robustcli.utils.errors import UserError

TEMPORARY = ".tmp-"
_OURS = re.compile(r"\.tmp-robustcli-\d+-[0-9a-f]{8}-.+")  # a name that nobody else gives a file


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Context of an atomic write: yields a temporary path, synced and renamed to ``path``, or removed on an exception.

    The temporary name keeps the suffix, because writers of pictures and tables choose their format by it. A process
    that is killed inside leaves at most a temporary file, which :func:`remove_temporaries` removes. A link at ``path``
    is replaced, its target left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-robustcli-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    # The file is made here, where nothing may be in its place: a writer of a library would follow a link.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors writes files that none but their owner may read
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def append_to(path: Path) -> TextIO:
    """The text file at ``path``, made if absent and open at its end.

    Raises:
        UserError: it is a link, symbolic or hard, no plain file, or cannot be opened; its target is left as it is.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        state = os.fstat(handle)
        if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
            return open(handle, "a", encoding="utf-8")
        os.close(handle)
        reason = "it is a link to another file, or no file"
    except OSError as error:
        reason = "it is a link to another file" if path.is_symlink() else str(error.strerror)
    raise UserError(f"{path} cannot be written to ({reason}): remove it, or work in another directory")


def refuse_link(path: Path) -> None:
    """Check of a file that a library will open for writing by its name.

    Raises:
        UserError: it is a link, symbolic or hard.
    """
    with suppress(FileNotFoundError):
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode) or (stat.S_ISREG(state.st_mode) and state.st_nlink > 1):
            raise UserError(f"{path} cannot be written to (it is a link to another file): remove it")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, content: Any) -> None:
    """Write YAML in the order of ``content``, whole or not at all."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def is_temporary(path: Path) -> bool:
    """True for the name of a file of :func:`atomic` that is being written, or was left by a killed writer."""
    return _OURS.fullmatch(path.name) is not None


def remove_temporaries(directory: Path, *, deep: bool = True) -> None:
    """Remove temporary files of killed writers in ``directory``, to which no other process may be writing.

    Args:
        deep: in the folders below it as well.
    """
    for left in filter(is_temporary, directory.glob("**/.tmp-robustcli-*" if deep else ".tmp-robustcli-*")):
        if left.is_file():
            left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: else a crash may keep the name and lose the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
