"""Medians of CPU time, and the table that they are shown in."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        what: the work that is done.
        against: what the other side is.
        ours, other: CPU seconds.
        at_most: the target of ours / other; None: none.
        at_least: the target of other / ours, which is then the ratio that is shown; None: none.
        note: what a reader must know, such as how many results are equal.
    """

    what: str
    against: str
    ours: float
    other: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Other / ours where more is better, else ours / other."""
        return self.other / self.ours if self.at_least is not None else self.ours / self.other

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_least is not None:
            return self.ratio >= self.at_least
        return None if self.at_most is None else self.ratio <= self.at_most


def cpu_seconds(sides: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side, all its threads together.

    The sides take turns, so that a change of the machine's clock meets all of them; the first round warms up and is
    not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, call in sides.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def cpu_seconds_once(call: Callable[[], object]) -> float:
    """CPU seconds of something that can be done only once, such as filling a cache."""
    started = time.process_time()
    call()
    return time.process_time() - started


def show(name: str, rows: Sequence[Row], command: str, console: Console) -> None:
    """Print the table of one benchmark with the command that makes it."""
    table = Table(title=name, caption=command, title_justify="left", caption_justify="left")
    for heading in ("what", "against", "ours", "other", "ratio", "target", "met", "note"):
        table.add_column(heading, justify="right" if heading in ("ours", "other", "ratio", "target") else "left")
    for row in rows:
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row.met]
        figures = (_duration(row.ours), _duration(row.other), f"{row.ratio:.3g}x")
        table.add_row(row.what, row.against, *figures, _target(row), met, row.note)
    console.print(table)


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _target(row: Row) -> str:
    if row.at_least is not None:
        return f">= {row.at_least:g}x"
    return "" if row.at_most is None else f"<= {row.at_most:g}x"
