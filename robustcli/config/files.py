"""Checks of a user's own config files before Hydra reads them: text, and of a size that can be meant."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcli.config import groups as config_groups
from robustcli.utils.errors import UserError

_MOST_BYTES = 1_000_000
_MOST_ENTRIES = 100_000  # of a file with its aliases written out


def check_files(argv: Sequence[str]) -> None:
    """Check of every file in the groups of ``--config-dir``.

    Raises:
        UserError: ``--config-dir`` names no directory, or one of its files is no file, no UTF-8, too large or too deep.
    """
    config_groups.check_roots(argv)
    packaged = {group.partition("/")[0] for group in config_groups.groups()}
    for root in config_groups.roots(argv)[1:]:
        for folder in sorted(path for path in root.iterdir() if path.name in packaged and path.is_dir()):
            for file in sorted(folder.rglob("*.yaml")):
                _check(file)


def _check(file: Path) -> None:
    import yaml

    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise UserError(f"{file} is no config file: expected a regular file of at most {_MOST_BYTES:,} bytes.")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        entries = _count(root, {})
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{file} is nested more deeply than can be read: write it flatter.") from error
    if entries > _MOST_ENTRIES:
        raise UserError(
            f"{file} has {entries:.3g} entries once its aliases (*NAME) are written out, more than {_MOST_ENTRIES:,}: "
            "write it without so many."
        )


def _count(node: Any, known: dict[int, int]) -> int:
    """Entries below a node of YAML's graph, whose aliases are one object each; one that holds itself has no end."""
    if id(node) not in known:
        known[id(node)] = _MOST_ENTRIES + 1  # while it is counted
        parts = node.value if node is not None and not isinstance(node.value, str) else ()
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]
