"""A table over several runs as data, and as text, Markdown, LaTeX and a frame.

Shares in [0, 1] are shown in percent. A number that the diagnostics of its run call suspect is marked, and is never the
best of its column.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from robustcli.report.markdown import render_table
from robustcli.report.tables import DIRECTIONS, MISSING, Grid, title_of

SUSPECT_MARK = "†"
_LONGEST = 32  # letters of a setting in the name of a row
_MARKS = ("\0", "\1")  # around the best, until the text is escaped
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        SUSPECT_MARK: r"$^\dagger$",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    }
)


@dataclass(frozen=True)
class Figure:
    """A number of the table, in [0, 1], with its interval if it has one; ``seeds`` it is the mean of."""

    value: float
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1

    @property
    def spread(self) -> str:
        """The farther end of the interval, in percent; empty without one."""
        far = max(self.value - self.low, self.high - self.value)
        return "" if math.isnan(far) else f"±{100 * far:.1f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: a model of a run, of several that differ in their seed, or a mean over data sets.

    Attributes:
        settings: in which the runs of the table differ, and ``row``, the model in the table of its run.
        comparable: rows with the same text were judged on the same images.
        figures: (column, direction) -> number.
        suspect: columns whose number is not believed.
        published: (column, direction) -> number of a paper.
    """

    settings: Mapping[str, str]
    comparable: str
    figures: Mapping[tuple[str, str], Figure]
    suspect: frozenset[str] = frozenset()
    published: Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The table as data; ``columns`` in order, ``notes`` for its foot."""

    measure: str
    columns: Sequence[str]
    directions: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]


def best_of(joined: Joined) -> set[tuple[int, str]]:
    """(row, column) of the best numbers: highest mean over the directions among rows on the same images, suspect ones
    left out; of a success rate of attacks, lowest.
    """
    sign = -1 if joined.measure == "success_flip" else 1
    found = set()
    for column in joined.columns:
        groups: dict[str, list[tuple[float, int]]] = {}
        for index, row in enumerate(joined.rows):
            values = [figure.value for (name, _), figure in row.figures.items() if name == column]
            if values and column not in row.suspect:
                groups.setdefault(row.comparable, []).append((sign * statistics.fmean(values), index))
        for group in groups.values():
            best = max(value for value, _ in group)
            if len(group) > 1:
                found |= {(index, column) for value, index in group if math.isclose(value, best, abs_tol=1e-12)}
    return found


def label_of_row(row: Row, rows: Sequence[Row]) -> str:
    """Name of ``row`` among ``rows``, by the settings in which they differ."""
    keys = dict.fromkeys(key for each in rows for key in each.settings if key != "counted over")
    told = [key for key in keys if len({each.settings.get(key) for each in rows}) > 1] or ["row"]
    shorter = {key: dict(zip(texts, _shortened(texts), strict=True)) for key, texts in _texts(rows, told).items()}
    return " ".join(filter(None, (shorter[key][row.settings.get(key, "")] for key in told)))


def _texts(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, list[str]]:
    return {key: [row.settings.get(key, "") for row in rows] for key in keys}


def grid_of(joined: Joined, *, line_break: str = "\n", marks: tuple[str, str] = ("", "")) -> Grid:
    """The table as text.

    Args:
        line_break: between a number and its interval.
        marks: before and behind the best of a column.
    """
    best = best_of(joined)
    keys = list(dict.fromkeys(key for row in joined.rows for key in row.settings))
    shown_keys = [key for key in keys if len({row.settings.get(key) for row in joined.rows}) > 1] or keys[-1:]
    columns, paper = [*shown_keys], {column for row in joined.rows for column, _ in row.published}
    for column in joined.columns:
        columns += [column, *([f"{column}, published"] if column in paper else [])]
    names = [_shortened(texts) for texts in _texts(joined.rows, shown_keys).values()]
    rows = []
    for index, (row, *cells) in enumerate(zip(joined.rows, *names, strict=True)):
        for column in joined.columns:
            text = _cell(row, column, joined.directions, line_break)
            marked = text + (SUSPECT_MARK if column in row.suspect else "")
            cells.append(marked.join(marks) if (index, column) in best else marked)
            if column in paper:
                cells.append(_paper(row, column, joined.directions))
        rows.append(cells)
    ways = " / ".join(DIRECTIONS[name] for name in joined.directions)
    return Grid(
        f"{title_of(joined.measure, joined.directions)} in percent, {ways}", columns, rows, " ".join(joined.notes)
    )


def markdown_of(joined: Joined) -> str:
    """The table as Markdown, the best in bold."""
    text = render_table(grid_of(joined, line_break=" ", marks=_MARKS))
    return text.replace(_MARKS[0], "**").replace(_MARKS[1], "**")


def tex_of(joined: Joined) -> str:
    """The table as LaTeX with the rules of booktabs, the best in bold and a footnote for what is suspect."""
    plain = grid_of(joined, line_break=" ", marks=_MARKS)

    def escaped(text: str) -> str:
        return text.translate(_TEX).replace(_MARKS[0], r"\textbf{").replace(_MARKS[1], "}")

    settings = len(plain.columns) - sum(
        1 for name in plain.columns if name.removesuffix(", published") in joined.columns
    )
    lines = [
        rf"\begin{{tabular}}{{{'l' * settings}{'r' * (len(plain.columns) - settings)}}}",
        r"\toprule",
        " & ".join(map(escaped, plain.columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escaped, row)) + r" \\" for row in plain.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escaped(note)}" for note in [f"{plain.title}.", *joined.notes]),
    ]
    return "\n".join(lines) + "\n"


def frame_of(joined: Joined) -> pd.DataFrame:
    """The table as data: one line a number, with its interval, the number of seeds, verdict and published number."""
    return pd.DataFrame(
        {
            **row.settings,
            "attack": column,
            "direction": direction,
            joined.measure: figure.value,
            "low": figure.low,
            "high": figure.high,
            "seeds": figure.seeds,
            "suspect": column in row.suspect,
            "published": row.published.get((column, direction), math.nan),
        }
        for row in joined.rows
        for (column, direction), figure in row.figures.items()
    )


def _cell(row: Row, column: str, directions: Sequence[str], line_break: str) -> str:
    figures = [row.figures.get((column, each)) for each in directions]
    if not any(figures):
        return MISSING
    values = " / ".join(MISSING if each is None else f"{100 * each.value:.1f}" for each in figures)
    spreads = ["" if each is None else each.spread for each in figures]
    return values + (line_break + " / ".join(each or MISSING for each in spreads) if any(spreads) else "")


def _paper(row: Row, column: str, directions: Sequence[str]) -> str:
    values = [row.published.get((column, each)) for each in directions]
    if all(value is None for value in values):
        return MISSING
    return " / ".join(MISSING if value is None else f"{100 * value:.1f}" for value in values)


def _shortened(texts: Sequence[str]) -> list[str]:
    """Settings for the name of a row: of long ones, what stands behind the last stroke of each path, or their end;
    whole where two would look alike.
    """

    def short(text: str) -> str:
        bare = re.sub(r"[^\[\]{},:'\" ]*/", "", text).replace("'", "") if len(text) > _LONGEST else text
        return bare if len(bare) <= _LONGEST else "..." + bare[-_LONGEST + 3 :]

    made = {text: short(text) for text in texts}
    return [made[text] if list(made.values()).count(made[text]) == 1 else text for text in texts]
