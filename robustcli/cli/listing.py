"""``robustcli list``: the commands and the config groups with their choices, as tables."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robustcli.config import groups as config_groups
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean


def show(commands: Iterable[tuple[str, str]], group: str | None = None) -> None:
    """Print the commands (name, summary) and all groups, or the choices of one group.

    Raises:
        UserError: there is no such group.
    """
    choices = config_groups.groups()
    if group is not None and group not in choices:
        near = did_you_mean(group, list(choices))
        raise UserError(f"there is no config group {group!r}{near} (groups: {', '.join(choices)})")
    console = Console(markup=False, highlight=False)  # what files say of themselves may hold brackets
    if group is None:
        console.print(_table("robustcli COMMAND", commands))
    for name in [group] if group is not None else choices:
        folder = config_groups.conf_directory() / name
        console.print(_table(f"{name}=", ((choice, _about(folder, choice)) for choice in choices[name])))


def _table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    return table


def _about(folder: Path, choice: str) -> str:
    return config_groups.summary(folder / f"{choice}.yaml")
