"""Config directories, the groups of each command, and the choices of each group.

Read from the directory alone, without Hydra, because help and completion must answer at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

from robustcli.utils.errors import UserError

_KEY = re.compile(r"^( *)(\w+):(?: ([^\s#](?:.*?\S)??))?(?: +# (.*))?$", re.MULTILINE)
EXPERIMENT = "experiment"  # the one group whose choices stand in a folder for each command: train_mat/tiny_clean


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


def check_roots(argv: Sequence[str]) -> None:
    """`UserError` where ``--config-dir`` names no directory: Hydra would look past it."""
    for root in roots(argv)[1:]:
        if not root.is_dir():
            raise UserError(f"--config-dir {root} is no directory: give one with config groups, such as my_conf.")


def groups(argv: Sequence[str] = ()) -> dict[str, list[str]]:
    """Config groups and their choices, ``{"dataset": ["coco", "scenes", ...], ...}``, in the order of the alphabet."""
    found: dict[str, set[str]] = {}
    for root in roots(argv):
        for file in root.rglob("*.yaml"):
            path = file.relative_to(root).with_suffix("")
            parts = path.parts[:1] if path.parts[0] == EXPERIMENT else path.parts[:-1]
            if len(path.parts) > 1:
                found.setdefault("/".join(parts), set()).add("/".join(path.parts[len(parts) :]))
    return {group: sorted(found[group]) for group in sorted(found)}


def groups_of(command: str, argv: Sequence[str] = ()) -> dict[str, list[str]]:
    """The groups that ``command`` (as typed) has and their choices, in the order of its defaults list.

    Of ``experiment`` those of the command, and those of the user's that stand in no folder.
    """
    known, own = groups(argv), command.replace("-", "_")
    found = {group: known[group] for group in default_groups(own) if group in known}
    if EXPERIMENT in found:
        found[EXPERIMENT] = [name for name in found[EXPERIMENT] if "/" not in name or name.startswith(f"{own}/")]
    return {group: choices for group, choices in found.items() if choices}


def default_groups(name: str) -> list[str]:
    """The groups in the defaults list of ``conf/<name>.yaml`` and of the files beside it that this lists, in order."""
    return list(as_typed(name))


@cache
def as_typed(command: str) -> Mapping[str, str]:
    """The groups of ``command``, by its packaged file, and how each is chosen on its command line: ``{"model":
    "model@reference"}`` where the choice goes elsewhere.
    """
    import yaml

    file = conf_directory() / f"{command.replace('-', '_')}.yaml"
    listed = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []) if file.is_file() else []
    found: dict[str, str] = {}
    for entry in listed:
        if isinstance(entry, str):
            found |= {group: typed for group, typed in as_typed(entry).items() if group not in found}
        elif not (group := next(iter(entry))).startswith("override "):
            found.setdefault(group.partition("@")[0], group)  # `purifier@baselines.noise` chooses a purifier too
    return found


@dataclass(frozen=True)
class Key:
    """A key of a config file: its dotted name, its default as written (empty of what holds others), its comment."""

    key: str
    value: str
    comment: str


def keys_in(command: str) -> list[Key]:
    """The keys that stand in the file of ``command`` (as typed) itself, ``certify.sigma`` too; not those of groups."""
    text = (conf_directory() / f"{command.replace('-', '_')}.yaml").read_text(encoding="utf-8")
    body = re.sub(r"^(?:defaults|hydra):\n(?:[ -].*\n|\n)*", "", text, flags=re.MULTILINE)
    found, parent = list[Key](), ""
    for indent, name, value, comment in _KEY.findall(body):
        parent = parent if indent else name
        if value or comment:
            found.append(Key(f"{parent}.{name}" if indent else name, value, comment))
    return found


def summary(file: Path) -> str:
    """The first comment line of a config file, without ``# @package``; empty if there is none."""
    with file.open(encoding="utf-8", errors="replace") as lines:  # a listing shows what it can
        comments = (line.lstrip("# ").strip() for line in takewhile(lambda line: line[0] == "#", lines))
        return next((text for text in comments if text and not text.startswith("@package")), "")
