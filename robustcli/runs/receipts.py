"""Hashes of what a run wrote, by which a later change of a file is found."""

from collections.abc import Mapping
from pathlib import Path

from robustcli.runs.provenance import file_hash
from robustcli.utils import files

# What goes on changing, or holds the hashes themselves.
_LEFT_OUT = {"manifest.json", "log.txt", "DONE", "FAILED", ".lock"}


def output_hashes(directory: Path) -> dict[str, str]:
    """sha256 of every file of a run by its name below ``directory``; its own account, parts and links left out."""
    found = (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink())
    names = {path.relative_to(directory).as_posix(): path for path in found if not files.is_temporary(path)}
    return {
        name: file_hash(path)
        for name, path in names.items()
        if name not in _LEFT_OUT and not name.startswith(("parts/", ".hydra/"))
    }


def changed_files(directory: Path, recorded: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and fault of each file that is not as it was ``recorded``: changed, missing, or of another hand."""
    now = output_hashes(directory)
    other = [name for name in recorded if now.get(name) != recorded[name]]
    lost = {name: "was changed" if name in now else "is missing" for name in other}
    return sorted({**lost, **{name: "was added" for name in now.keys() - recorded.keys()}}.items())
