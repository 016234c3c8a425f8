"""Pretrained models of other libraries, read from folders of this machine: no network, no code of theirs is run."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from robustcli.utils.errors import UserError, lacks_memory

T = TypeVar("T")

_LIBRARIES = ("transformers", "diffusers")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def library(name: str, extra: str) -> Any:
    """The module ``name`` of an optional extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"this augment=... needs {name} ({error}): install robustcli[{extra}].") from error


def model_folder(key: str, path: str | None, marker: str, like: str) -> Path:
    """The folder ``path`` of ``augment.<key>``, checked before a library looks at it.

    Args:
        marker: a file that it has to have.
        like: what it is to hold, for the message.

    Raises:
        UserError: no path, no such folder, or none of a model with weights.
    """
    if path is None:
        raise UserError(f"augment.{key} is null: give the folder of {like}; nothing is downloaded.")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"augment.{key} is {path!r}, where no folder is: give that of {like}; nothing is downloaded.")
    if not (folder / marker).is_file() or not weight_files(folder):
        raise UserError(f"augment.{key} is {path!r}, which lacks {marker} or weights: give the folder of {like}.")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Files of weights in a folder and below it, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS and path.is_file())


def weights_sha256(files: Sequence[Path]) -> str:
    """sha256 (hex) over the contents of files of weights, in their order."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def read(key: str, path: str | Path, like: str, make: Callable[[], T]) -> T:
    """What a library makes of the folder ``path`` of ``augment.<key>``.

    Raises:
        UserError: it cannot make it; lack of memory passes as it is.
    """
    try:
        with quiet():
            return make()
    except Exception as error:  # of libraries whose exceptions change from version to version
        if lacks_memory(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"augment.{key} is {str(path)!r}, of which {like} cannot be made ({first:.200}).") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which the loaded ones of the libraries show no bars and log errors alone; left as they were found."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    modules = [sys.modules[f"{name}.utils.logging"] for name in _LIBRARIES if f"{name}.utils.logging" in sys.modules]
    bars: list[Any] = [module for module in modules if module.is_progress_bar_enabled()]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for bar in bars:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for bar in bars:
            bar.enable_progress_bar()
