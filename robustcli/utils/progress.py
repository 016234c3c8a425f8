"""Progress display: a live bar in a terminal, a plain line at intervals elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text


@dataclass(frozen=True)
class Part:
    """A part of the work that is shown within it, such as one attack of an evaluation.

    Attributes:
        title: as shown; ``key`` tells two parts of the same title apart.
        total: steps of the part.
    """

    title: str
    key: str
    total: int


_BAR = 16  # columns of a bar
_TELLING = 0.01  # share of the work from which on its speed is known


class Progress:
    """Counts steps and shows them with loss, recall, samples per second and the time that is left.

    Use as a context manager and call :meth:`advance` after each step. It writes to the standard error. Work within work
    is one display: the part that runs has a line of its own under that of the whole.

    Args:
        total: steps in all; None where they are not known.
        description: of the work, for example ``train``.
        done: steps of earlier sessions, for a resumed run.
        unit: of ``samples`` in :meth:`advance`.
        work: of all steps together, in any unit, where they are not equally long; None: they are.
        every_seconds: interval of the plain lines where there is no terminal.
        console: output; None: the standard error.
        clock: monotone, in seconds.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        *,
        done: int = 0,
        unit: str = "samples",
        work: float | None = None,
        every_seconds: float = 15.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.steps, self.every_seconds = done, every_seconds
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._first = self._printed = done
        self._samples = 0
        self._work, self._worked = work, 0.0
        self._part: Part | None = None
        self._part_steps = 0
        self._fields: dict[str, str] = {}
        self._bar: Bar | None = None
        self._begin = self._shown = self._told = clock()

    def __enter__(self) -> Self:
        self._begin = self._shown = self._told = self._clock()
        if self._console.is_terminal:
            columns = (
                BarColumn(bar_width=_BAR),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _Text(self),
            )
            self._bar = Bar(TextColumn("{task.description}", markup=False), *columns, console=self._console)
            self._bar.add_task(self.description, total=self.total, completed=self.steps)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
        elif self.steps > self._printed:
            self._line()

    def advance(self, n: int = 1, *, samples: int | None = None, **fields: Any) -> None:
        """Count ``n`` steps, in which ``samples`` samples passed (default: ``n``), and show the latest ``fields``.

        A field keeps its last value until it is given again, so that a recall measured now and then stays in sight.
        """
        self.steps += n
        if n:
            self._told = self._clock()
        self._samples += n if samples is None else samples
        self._fields |= {name: _number(value) for name, value in fields.items()}
        if self._bar is not None:
            self._show()
        elif self._clock() - self._shown >= self.every_seconds:
            self._line()

    def advance_part(self, n: int, part: Part, *, work: float = 0.0) -> None:
        """Count ``n`` steps of ``part``, ``work`` of that of the whole; the first of another part begins it."""
        begun = self._part is not None and self._part.key == part.key
        self._part, self._part_steps = part, n + (self._part_steps if begun else 0)
        self._worked += work
        self.advance(n)

    def text(self) -> str:
        """The fields, the rate and the time left, as shown."""
        spent = self._told - self._begin  # until the last step, of which a rate and a time can be told
        parts = [f"{name} {value}" for name, value in self._fields.items()]
        if self._part is not None and self._bar is None:  # a terminal has a line of its own for it
            parts.append(f"{self._part.title} {self._part_steps}/{self._part.total}")
        if spent > 0 and self._samples:
            parts.append(f"{_number(self._samples / spent)} {self.unit}/s")
        left = self.time_left()
        if left is not None:  # first in a terminal, where a line that is too long is cut
            parts.insert(len(parts) if self._bar is None else 0, f"{duration(left)} left")
        return "  ".join(parts)

    def room(self) -> int:
        """Columns that a terminal has beside title, bar, count and time."""
        titles = [len(self.description), *([] if self._part is None else [len(self._part.title) + 2])]
        beside = max(titles) + _BAR + 2 * len(str(self.total or self.steps)) + 1 + len(duration(0)) + 4
        return max(len(f"{duration(0)} left"), self._console.width - beside)

    def time_left(self) -> float | None:
        """Seconds until the end, at the mean speed of this session, less those since the last step.

        None before the first step, without a total, and where too little of the work is done to tell: the start of
        processes would be taken for their speed.
        """
        spent, made = self._told - self._begin, self.steps - self._first
        if self._work:
            if self._worked <= _TELLING * self._work:
                return None
            left = max(0.0, self._work - self._worked) * spent / self._worked
        elif self.total is None or not made:
            return None
        else:
            left = (self.total - self.steps) * spent / made
        return max(0.0, left - (self._clock() - self._told))

    def _show(self) -> None:
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=self.steps)
        if self._part is not None:
            if len(self._bar.task_ids) == 1:
                self._bar.add_task(self._part.title)
            title, total = f"  {self._part.title}", self._part.total
            self._bar.update(self._bar.task_ids[1], description=title, completed=self._part_steps, total=total)

    def _line(self) -> None:
        self._shown, self._printed = self._clock(), self.steps
        count = f"{self.steps}" if self.total is None else f"{self.steps}/{self.total}"
        line = f"{self.description} {count}  {self.text()}".rstrip()
        self._console.print(Text(line), soft_wrap=True)


class _Text(ProgressColumn):
    """The text beside the bar of the whole, made anew each time that it is drawn, so that the time left goes on."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._progress = progress

    def render(self, task: Task) -> Text:
        """Called by rich."""
        text = Text(self._progress.text() if task.id == 0 else "")
        text.truncate(self._progress.room(), overflow="ellipsis")  # a second line would make the display jump
        return text


def _number(value: Any) -> str:
    if isinstance(value, (int, str)):
        return str(value)
    number = float(value)
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as ``0:07:30``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
