"""``robustcli list``: the commands and the config groups with their choices, as tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustcli.cli.commands import COMMANDS
from robustcli.config import groups as config_groups
from robustcli.config.files import check_files
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean


def print_choices(name: str | None = None, argv: Sequence[str] = ()) -> None:
    """Print the commands and all groups, the groups of the command ``name``, or the choices of the group ``name``.

    Args:
        argv: searched for ``--config-dir``, a directory with config groups of the user's own.

    Raises:
        UserError: there is no such command, group or directory.
    """
    check_files(argv)
    roots = config_groups.roots(argv)
    every = config_groups.groups(argv)
    if name is None:
        print_table("robustcli COMMAND", ((command.name, command.summary) for command in COMMANDS.values()))
        chosen = every
    elif name in COMMANDS and name not in every:
        chosen = config_groups.groups_of(name, argv)
    elif name in every:
        chosen = {name: every[name]}
    else:
        near = did_you_mean(name, [*every, *COMMANDS])
        raise UserError(f"there is no config group {name!r}{near} (groups: {', '.join(every)})")
    for group, choices in chosen.items():
        print_table(f"{group}=", ((choice, _summary(roots, f"{group}/{choice}.yaml")) for choice in choices))


def _summary(roots: Sequence[Path], name: str) -> str:
    return next(config_groups.summary(root / name) for root in reversed(roots) if (root / name).is_file())


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and descriptions without rich markup: the comments of config files may hold brackets."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
    )
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    Console().print(table)
