"""``robustcli list``: the commands and the config groups with their choices, as tables."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from robustcli.cli.commands import COMMANDS
from robustcli.config import groups as config_groups
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean


def show(name: str | None = None) -> None:
    """Print the commands and all groups, the groups of the command ``name``, or the choices of the group ``name``.

    Raises:
        UserError: there is no such command or group.
    """
    every = config_groups.groups()
    if name is None:
        print_table("robustcli COMMAND", ((command.name, command.summary) for command in COMMANDS.values()))
        chosen = every
    elif name in COMMANDS and name not in every:
        chosen = config_groups.groups_of(name)
    elif name in every:
        chosen = {name: every[name]}
    else:
        near = did_you_mean(name, [*every, *COMMANDS])
        raise UserError(f"there is no config group {name!r}{near} (groups: {', '.join(every)})")
    for group, choices in chosen.items():
        folder = config_groups.conf_directory() / group
        print_table(f"{group}=", ((choice, config_groups.summary(folder / f"{choice}.yaml")) for choice in choices))


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and what they are, as they stand: what files say of themselves may hold brackets."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    Console(markup=False, highlight=False).print(table)
