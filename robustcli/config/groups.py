"""Where the configuration files are, and what they offer.

Read from the directory alone, without Hydra, because help and completion must answer at once.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path


def conf_directory() -> Path:
    """The packaged ``conf``: inside the package where a wheel put it, beside the package in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def roots(argv: Sequence[str] = ()) -> list[Path]:
    """The packaged directory and the one that ``--config-dir`` adds in ``argv``, if it does."""
    added = [Path(after) for flag, after in pairwise(argv) if flag in ("--config-dir", "-cd")]
    added += [Path(word.split("=", 1)[1]) for word in argv if word.startswith("--config-dir=")]
    return [conf_directory(), *added]


def groups(argv: Sequence[str] = ()) -> dict[str, list[str]]:
    """Config groups and their choices, ``{"dataset": ["coco", "scenes", ...], ...}``, in the order of the alphabet."""
    found: dict[str, set[str]] = {}
    for root in roots(argv):
        for file in root.rglob("*.yaml"):
            group = file.parent.relative_to(root).as_posix()
            if group != ".":
                found.setdefault(group, set()).add(file.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def summary(file: Path) -> str:
    """What a configuration file says of itself in its first comment line; empty where it says nothing."""
    for line in comment_lines(file):
        return line
    return ""


def comment_lines(file: Path) -> Iterator[str]:
    """The comment lines at the head of ``file``, without their marks and without Hydra's ``@package`` directive."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                return
            text = line.lstrip("# ").strip()
            if text and not text.startswith("@package"):
                yield text
