"""Atomic file writes (temporary name in the same folder, fsync, rename), and readers of JSON and YAML."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

TEMPORARY = ".tmp-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Context of an atomic write: yields a temporary path, synced and renamed to ``path``, or removed on an exception.

    The temporary name keeps the suffix, because writers of pictures and tables choose their format by it. A process
    that is killed inside leaves at most a temporary file, which :func:`remove_temporaries` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


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


def remove_temporaries(directory: Path) -> None:
    """Remove temporary files of killed writers under ``directory``, to which no other process may be writing."""
    for left in directory.rglob(f"{TEMPORARY}*"):
        left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: else a crash may keep the name and lose the bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
