"""Image files below a folder, and files whose names are written with other code points than asked for."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from robustcli.data.faults import Faults


def normal(name: str) -> str:
    """``name`` in NFC: macOS writes é as e with an accent (NFD), and both look alike."""
    return unicodedata.normalize("NFC", name)


def is_unicode(name: str) -> bool:
    """False for text that UTF-8 cannot hold and no table could store: half of a surrogate pair, as JSON may spell it
    (``\\ud800``), or a byte of a file name that is not UTF-8.
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    """``name`` with backslashes for what UTF-8 cannot hold."""
    return name.encode(errors="backslashreplace").decode()


def hidden(name: str) -> bool:
    """True for a path with a hidden file or folder in it, such as ``.ipynb_checkpoints/1.png``."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def files_below(folder: Path, faults: Faults) -> list[Path]:
    """Files below ``folder`` in the order of their names, without hidden ones and hidden folders.

    Links to folders are followed; one that leads back to where it stands is a fault, and so is one without an end.
    """
    real = Path(os.path.realpath(folder))
    return list(_walk(folder, faults, (real, *real.parents)))


def _walk(folder: Path, faults: Faults, entered: tuple[Path, ...]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if hidden(path.name):
            continue
        if not is_unicode(path.name):
            faults.report(printable(str(path)), "has a name that is not UTF-8")
        elif path.is_dir():
            real = Path(os.path.realpath(path))
            if real in entered:
                faults.report(str(path), "is a link to a folder that it stands in")
            else:
                yield from _walk(path, faults, (*entered, real))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            faults.report(str(path), f"is a link to {os.readlink(path)}, which does not exist")


def on_disk(path: Path) -> Path:
    """``path`` as it is written on the disk, where only the normal form of its name differs; else unchanged."""
    if path.exists() or str(path).isascii():
        return path
    parent = on_disk(path.parent)
    named = [each for each in _names(parent) if normal(each) == normal(path.name)]
    return parent / named[0] if named else path


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
