"""Content of ``torch.save`` files and TorchScript archives: tensors and plain data, without running code from them."""

import argparse
import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.utils.errors import UserError

# What training scripts store beside the weights, and what can hold nothing but data: numbers of numpy, under the names
# of its versions 1 and 2, and parsed arguments.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_SCRIPT = "/constants.pkl"  # the member that tells a TorchScript archive
_DATA = ("data.pkl", "version", "byteorder", "data", ".data")  # its members that hold data, as those of torch.save do
_CLASSES = "__torch__."  # its classes, whose code is in the archive
_LISTS = "torch.jit._pickle."  # its makers of typed lists, of their items


class _Scripted:
    """Stand-in for each class of a TorchScript archive: it holds attributes, and has no code that they could reach."""


def _items(items: Any, *_: Any) -> Any:
    """Stand-in for TorchScript's makers of typed lists."""
    return items


def read_torch(path: Path, *, mmap: bool = False) -> Any:
    """The content of a ``torch.save`` file of tensors and plain data; the weights of a TorchScript archive by name.

    Args:
        mmap: leave the tensors on the disk until they are read, where the file is a zip archive.

    Raises:
        UserError: damaged, or it holds objects that could run code when read.
    """
    names = _members(path)
    try:
        with torch.serialization.safe_globals(_PLAIN):
            if any(name.endswith(_SCRIPT) for name in names):
                return _scripted(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and bool(names))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds Python objects beside tensors, or is damaged; it is not read, for such objects "
            "could run code: save its state_dict alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): it is damaged or no torch file") from error


def _members(path: Path) -> list[str]:
    """Names of the members of a zip archive; none for any other file, and for a damaged one, which torch refuses.

    Raises:
        UserError: they are larger than the file, which torch does not write: packed ones can fill any memory.
    """
    with suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        read = [member.file_size for member in members if "/code/" not in member.filename]  # code is packed, not read
        if sum(read) > path.stat().st_size:
            raise UserError(
                f"checkpoint {path} is a packed archive, which torch does not write: unpack it, and give the file of "
                "weights that is in it."
            )
        return [member.filename for member in members]
    return []


def _scripted(path: Path) -> dict[str, Tensor]:
    """The weights of a TorchScript archive, such as OpenAI's files of CLIP, by their names in its modules.

    The archive is read as one of `torch.save`, without the code in it: torch's restricted unpickler makes stand-ins of
    its classes, which hold their attributes.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(content, "w") as plain:
        for member in archive.infolist():
            parts = member.filename.split("/")
            if len(parts) > 1 and parts[1] in _DATA:
                plain.writestr(member.filename, archive.read(member))
    content.seek(0)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(content)
    inert: list[Any] = [
        (_Scripted if name.startswith(_CLASSES) else _items, name)
        for name in named
        if name.startswith((_CLASSES, _LISTS))
    ]
    content.seek(0)
    with torch.serialization.safe_globals(inert):
        root = torch.load(content, map_location="cpu", weights_only=True)
    return dict(_tensors(root, "", set()))


def _tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and of those in it, each module once: in a forged file they can be in one another."""
    if not isinstance(module, _Scripted) or id(module) in seen:
        return
    seen.add(id(module))
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.", seen)
