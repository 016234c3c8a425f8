"""The resumable state of a training: one file, whatever its strategy and the number of its processes.

It is a zip of entries ``weights/<name>``, ``average/<name>``, ``moments/<number of the weight>`` and others, each as
torch.save writes it, so that neither writing nor reading holds more than some of them beside the training. The first
process alone reads and writes the file.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.training.group import Group
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic

# Torch's own words advise to load what it distrusts with all the code in it: they are not passed on.
DAMAGES = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError),
    *(LookupError, TypeError, ValueError, AttributeError, NotImplementedError),
)
_PIECE = 1 << 28  # bytes of entries that a process sends at once


class Saved:
    """A saved state, in every process of a group.

    Args:
        path: of the file, in the first process; None: nothing was saved.
        group: of the processes, which ask alike.

    Attributes:
        names: of the entries.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path | None, group: Group) -> None:
        self._path, self._group = path, group
        self._file: zipfile.ZipFile | None = None  # one for all entries: its list of them is read as it is opened
        names = self._all_have(self._opened)
        if names is None:
            raise self.damaged()
        self.names: list[str] = names

    def __getitem__(self, name: str) -> Any:
        return self._all_have(lambda: self._read(name))

    def under(self, folder: str) -> Iterator[tuple[str, Any]]:
        """Names, without ``folder``, and contents of its entries; tensors are on the CPU."""
        for name in self.names:
            if name.startswith(f"{folder}/"):
                yield name.removeprefix(f"{folder}/"), self[name]

    def damaged(self) -> UserError:
        """That the file is damaged, as an error."""
        return UserError(
            f"the state of the training in {self._path or 'the run directory'} is damaged or of another training, so "
            "it cannot go on from there: put a copy of the file back, or begin a new run."
        )

    def _opened(self) -> list[str] | None:
        if self._path is None or not self._path.exists():
            return []
        try:
            self._file = zipfile.ZipFile(self._path)
            for entry in self._file.infolist():  # the list of names has no checksum, but each stands at its entry too
                self._file.open(entry).close()
        except DAMAGES:
            return None
        return self._file.namelist()

    def _read(self, name: str) -> Any:
        assert self._file is not None
        return unpacked(self._file.read(name))

    def _all_have(self, read: Callable[[], Any]) -> Any:
        if self._group.size == 1:
            return read()
        return unpacked(self._group.shared(lambda: packed(read())) or b"")


def save(path: Path | None, entries: Mapping[str, Any], group: Group) -> None:
    """Write a state for `Saved`, all of it or nothing, from the entries of all processes.

    Args:
        path: of the file, in the first process; None in the others, which send theirs.
        entries: of this process; where others have the same, those of the first one stand.
    """
    with ExitStack() as stack:
        file = None
        if path is not None:
            file = stack.enter_context(zipfile.ZipFile(stack.enter_context(atomic(path)), "w"))
            _write(file, entries)
        if group.size == 1:
            return
        pieces = [] if path is not None else list(_pieces(entries))
        for number in range(int(group.gathered(torch.tensor([len(pieces)])).max())):
            sent = packed({name: entries[name] for name in pieces[number]}) if number < len(pieces) else b""
            for received in group.collected(sent):
                if received and file is not None:
                    _write(file, unpacked(received))


def packed(content: Any) -> bytes:
    """Tensors, numbers, texts and containers of them as bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def unpacked(content: bytes) -> Any:
    """What `packed` was given, on the CPU; no code in it is run."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _write(file: zipfile.ZipFile, entries: Mapping[str, Any]) -> None:
    for name in [name for name in entries if name not in file.NameToInfo]:
        with file.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:
            torch.save(entries[name], entry)


def _pieces(entries: Mapping[str, Any]) -> Iterator[list[str]]:
    """Names of the entries in runs that may be sent at once."""
    names: list[str] = []
    size = 0
    for name, content in entries.items():
        tensors = content.values() if isinstance(content, dict) else [content]
        size += sum(each.nbytes for each in tensors if isinstance(each, Tensor))
        names.append(name)
        if size >= _PIECE:
            yield names
            names, size = [], 0
    if names:
        yield names
