"""Runs and sweeps below a folder, for a list: read without following a link, and whatever their files hold."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_MOST = 5_000_000  # bytes of a manifest; those of runs have thousands
SWEEP = "sweep"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A run or a sweep as it stands in the list.

    Attributes:
        path: below the root, with slashes.
        kind: the command, or ``sweep``.
        status: ``done``, ``failed``, ``running``, ``interrupted`` or ``damaged``.
        start: date and time, or empty.
        settings: overrides in one line.
        objective: the figure that a sweeper would see; None where there is none.
        note: why it failed.
        has_page: there is a ``report.html``.
    """

    path: str
    kind: str
    status: str
    start: str = ""
    settings: str = ""
    objective: float | None = None
    note: str = ""
    has_page: bool = False

    def matches(self, text: str, kind: str, status: str) -> bool:
        """True where every word of ``text`` stands in its path, settings or note, and kind and status fit."""
        whole = f"{self.path} {self.settings} {self.note}".lower()
        return (
            all(word in whole for word in text.lower().split())
            and kind in ("", self.kind)
            and status in ("", self.status)
        )


def find(root: Path) -> list[Listed]:
    """All runs and sweeps below ``root``, the newest first; links are not followed."""
    return sorted(_found(root), key=lambda each: (each.start, each.path), reverse=True)


def inside(root: Path, path: str) -> Path | None:
    """The place ``path`` below ``root``; None for one that leads outside of it, or over a link."""
    parts = PurePosixPath(path).parts
    if not parts or "\0" in path or any(part in ("..", "/", "//") for part in parts):
        return None
    place = root
    for part in parts:
        place = place / part
        if os.sep in part or place.is_symlink():
            return None
    return place if place.exists() else None


def holds_links(directory: Path, names: Sequence[str]) -> bool:
    """True where one of the files ``names`` in ``directory`` is a link."""
    return any((directory / name).is_symlink() for name in names)


def _found(root: Path) -> Iterator[Listed]:
    for place, folders, names in os.walk(root, followlinks=False):
        directory = Path(place)
        if directory == root and not {"manifest.json", "FAILED", "sweep.csv"} & set(names):
            folders[:] = [name for name in folders if not name.startswith(".")]
            continue
        if "sweep.csv" in names:
            yield _listed(directory, root, SWEEP, "done" if "report.html" in names else "running")
        elif "manifest.json" in names or "FAILED" in names:
            folders.clear()  # what stands in a run is its own
            yield _run(directory, root, set(names))
        folders[:] = [name for name in folders if not name.startswith(".")]


def _run(directory: Path, root: Path, names: set[str]) -> Listed:
    manifest = _json(directory / "manifest.json")
    if not manifest and "FAILED" not in names:
        return _listed(directory, root, "", "damaged")
    status = "done" if "DONE" in names else "failed" if "FAILED" in names else str(manifest.get("status"))
    words, objective = manifest.get("overrides"), _json(directory / "metrics.json").get("objective")
    return _listed(
        directory,
        root,
        str(manifest.get("command", "")),
        status,
        start=str(manifest.get("start") or "")[:19].replace("T", " "),
        settings=" ".join(map(str, words)) if isinstance(words, list) else "",
        objective=float(objective) if isinstance(objective, int | float) else None,
        note=_first_line(directory / "FAILED"),
    )


def _listed(directory: Path, root: Path, kind: str, status: str, **more: Any) -> Listed:
    page = directory / "report.html"
    path = directory.relative_to(root).as_posix()
    return Listed(path=path, kind=kind, status=status, has_page=page.is_file() and not page.is_symlink(), **more)


def _json(path: Path) -> dict[str, Any]:
    """The mapping in a file; an empty one for a link, or a file that is absent, vast or damaged."""
    try:
        if path.is_symlink() or path.stat().st_size > _MOST:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _first_line(path: Path) -> str:
    try:
        if path.is_symlink():
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(300).strip()
    except OSError:
        return ""
