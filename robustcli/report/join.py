"""One table over finished runs: a row a model of a run, a column an attack; as text, Markdown, LaTeX and CSV.

Runs that differ in their seed alone are one row, with the t-interval over the seeds; where all else is equal, runs on
several data sets have a row of their means. A number that the diagnostics of its run call suspect is marked, and is
never the best of its column.
"""

import math
import re
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.attacks.core.threat import shown
from robustcli.evaluation.records import CLEAN, WORST
from robustcli.report.markdown import render_table
from robustcli.report.runs import FinishedRun, RunsFound
from robustcli.report.sweep import t_interval
from robustcli.report.tables import ATTACK_LABELS, DIRECTIONS, MISSING, Grid, directions_of, label_of, title_of
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

MEASURES = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision", "success_flip", "worst")
_LONGEST = 32  # letters of a setting in the name of a row
_TOLD_BY_COLUMNS = ("attack", "attacks", "threat.eps")  # settings whose runs may stand side by side in one row
_NO_BEARING = ("diagnostics", "device", "threads", "evaluation.batch_size")  # settings that change no number
_SUSPECT, _MEAN = "†", "mean over"
_MARKS = ("\0", "\1")  # around the best, until the text is escaped
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        _SUSPECT: r"$^\dagger$",
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


def join(found: RunsFound, *, measure: str = "recall_at_1", published: Path | None = None) -> Joined:
    """The table of ``found``.

    Args:
        measure: a column of ``metrics.csv``, one of `MEASURES`.
        published: CSV of numbers of papers, see `read_published`.

    Raises:
        UserError: no finished run with the measure, or see `read_published`.
    """
    if measure not in MEASURES:
        raise UserError(f"the measure {measure!r} is none of the table: choose one of {', '.join(MEASURES)}.")
    runs = [run for run in found.finished if measure in run.figures and run.figures[measure].notna().any()]
    if not runs:
        others = f"; {_counted(len(found.open), 'run')} not finished" if found.open else ""
        raise UserError(f"no finished run there has a table of {measure}{others}.")
    varied = varied_settings(runs)
    whole = pd.concat([run.figures for run in runs], ignore_index=True)
    names = _names(runs, whole)
    single = [row for run in runs for row in _rows_of(run, measure, varied, names)]
    rows = _told_apart(over_seeds(side_by_side(single)))
    rows = rows + over_data(rows, whole=not found.open)
    reference = [] if published is None else read_published(published)
    rows, unmatched = with_published(rows, reference, runs)
    used = {column for row in rows for column, _ in row.figures}
    columns = [column for column in dict.fromkeys(names.values()) if column in used]
    return Joined(
        measure=measure,
        columns=columns,
        directions=directions_of(whole),
        rows=rows,
        notes=[*_notes(rows, found, measure, runs), *unmatched],
    )


def varied_settings(runs: Sequence[FinishedRun]) -> list[str]:
    """Keys of the overrides in which the runs differ; what a run did not set has the value of its config."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key.partition(".")[0] not in _NO_BEARING)
    keys = dict.fromkeys(key for key in keys if key not in _NO_BEARING)
    return [key for key in keys if len({_setting(run, key) for run in runs}) > 1]


def _setting(run: FinishedRun, key: str) -> str:
    text = run.settings.get(key, run.config.get(key))
    return "" if text in (None, "null") else str(text).strip("'\"")


def _names(runs: Sequence[FinishedRun], whole: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(attack, access, radius) -> name of the column, in the order of the columns; it tells what it needs to."""
    keys = {
        _entry(row, run.norm)
        for run in runs
        for row in run.figures[["attack", "access", "eps"]].drop_duplicates().to_dict("records")
    }
    radii = {eps for attack, _, eps in keys if eps}
    accesses = {access for _, access, _ in keys if access not in (CLEAN, WORST)}
    order = list(ATTACK_LABELS)
    known = list(dict.fromkeys(whole["attack"]))

    def place(entry: tuple[str, str, str]) -> tuple[int, str, int, float]:
        attack, access, eps = entry
        number = order.index(attack) if attack in order else len(order) + known.index(attack)
        size = parse_number("eps", eps, node="threat") if eps else 0.0
        return (number if attack != WORST else 10**6, access, 0, size)

    def name(attack: str, access: str, eps: str) -> str:
        told = access if len(accesses) > 1 and access not in (CLEAN, WORST) else ""
        return ", ".join([" ".join(filter(None, [label_of(attack), told])), *([eps] if eps and len(radii) > 1 else [])])

    return {entry: name(*entry) for entry in sorted(keys, key=place)}


def _entry(row: Mapping[Hashable, Any], norm: str) -> tuple[str, str, str]:
    """Attack, access and radius of a line of ``metrics.csv``; the radius is empty without one."""
    return str(row["attack"]), str(row["access"]), "" if pd.isna(row["eps"]) else shown(float(row["eps"]), norm)


def _rows_of(
    run: FinishedRun, measure: str, varied: Sequence[str], names: Mapping[tuple[str, str, str], str]
) -> list[Row]:
    settings = {key: _setting(run, key) for key in varied}
    rows = []
    for (model, _), part in run.figures.groupby(["model", "defence"], sort=False, dropna=False):
        figures, suspect = {}, set()
        for each in part[part[measure].notna()].to_dict("records"):
            column = names[_entry(each, run.norm)]
            low, high = (float(each.get(f"{measure}_{end}", math.nan)) for end in ("low", "high"))
            figures[column, str(each["direction"])] = Figure(float(each[measure]), low, high)
            attacked = {attack for label, attack in run.suspect if label == model}
            if each["attack"] in attacked or (each["attack"] == WORST and attacked):
                suspect.add(column)
        row = Row(
            settings=settings | {"row": str(model)},  # `model` may be one of the settings
            comparable=run.data,
            figures=figures,
            suspect=frozenset(suspect),
            published={},
        )
        rows.append(row)
    return rows


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Rows as one that differ in their attacks or their radius alone, which the columns tell; where two have a number
    for the same column, or other numbers without attack, they stay apart.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row.settings.items() if key not in _TOLD_BY_COLUMNS)
        groups.setdefault((rest, row.comparable), []).append(row)
    joined = []
    for group in groups.values():
        entries: dict[tuple[str, str], list[Figure]] = {}
        for row in group:
            for place, figure in row.figures.items():
                entries.setdefault(place, []).append(figure)
        attacked = [found for (column, _), found in entries.items() if column != label_of(CLEAN)]
        clean = [
            {figure.value for figure in found} for (column, _), found in entries.items() if column == label_of(CLEAN)
        ]
        if len(group) == 1 or any(len(found) > 1 for found in attacked) or any(len(values) > 1 for values in clean):
            joined += group
            continue
        settings = {key: value for key, value in group[0].settings.items() if key not in _TOLD_BY_COLUMNS}
        suspect = frozenset(column for row in group for column in row.suspect)
        figures = {place: found[0] for place, found in entries.items()}
        joined.append(replace(group[0], settings=settings, figures=figures, suspect=suspect))
    return joined


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in ``seed`` alone as one, with the mean and the 95 % t-interval over the seeds."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row.settings.items() if key != "seed")
        groups.setdefault((rest, row.comparable), []).append(row)
    joined = []
    for group in groups.values():
        if len({row.settings.get("seed") for row in group}) < len(group) or len(group) == 1:
            joined += group
            continue
        keys = [key for key in group[0].figures if all(key in row.figures for row in group)]
        figures = {key: _mean([row.figures[key].value for row in group]) for key in keys}
        settings = {key: value for key, value in group[0].settings.items() if key != "seed"}
        suspect = frozenset(column for row in group for column in row.suspect)
        joined.append(replace(group[0], settings=settings, figures=figures, suspect=suspect))
    return joined


def _mean(values: Sequence[float]) -> Figure:
    return Figure(statistics.fmean(values), *t_interval(values), len(values))


def over_data(rows: Sequence[Row], *, whole: bool) -> list[Row]:
    """A row of means for each setting that stands on several data sets: the plain mean, each set counts the same.

    Args:
        whole: False if a run is missing, in which case the mean would be one over other sets: no rows.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row.settings.items() if not key.startswith("dataset"))
        groups.setdefault(rest, []).append(row)
    sets = {frozenset(row.comparable for row in group) for group in groups.values()}
    if not whole or len(sets) != 1 or len(next(iter(sets))) < 2:
        return []
    means = []
    for rest, group in groups.items():
        if len({row.comparable for row in group}) < len(group):
            return []
        keys = [key for key in group[0].figures if all(key in row.figures for row in group)]
        told = f"{_MEAN} {len(group)} data sets"
        means.append(
            Row(
                settings={"dataset": told} | dict(rest),
                comparable=told,
                figures={key: Figure(statistics.fmean(row.figures[key].value for row in group)) for key in keys},
                suspect=frozenset(column for row in group for column in row.suspect),
                published={},
            )
        )
    return means


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows; those of equal settings, as of a run that was done twice, are numbered."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    told = []
    for row in rows:
        settings = tuple(row.settings.items())
        counts[settings] = counts.get(settings, 0) + 1
        number = {"run": f"again, {counts[settings]}"} if counts[settings] > 1 else {}
        told.append(replace(row, settings=dict(settings) | number))
    return told


def read_published(path: Path) -> list[dict[str, str]]:
    """Numbers of papers from a CSV: ``published`` in percent, ``attack``, and what tells the row, each where it is
    needed: ``row`` (the model in the table of its run), ``direction``, ``eps``, or any override in which the runs
    differ, such as ``dataset``.

    Raises:
        UserError: no such file, no column ``attack`` or ``published``, or a value that is no percentage.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {path} cannot be read as a CSV ({error}).") from error
    missing = {"attack", "published"} - set(frame.columns)
    if missing:
        raise UserError(
            f"--published {path} has no column {' and none '.join(sorted(missing))}: it needs attack and published (in "
            "percent), and may have direction, eps, row or any override that tells the runs apart."
        )
    for number in frame["published"]:
        if not 0 <= parse_number("published", number, node=path.name) <= 100:
            raise UserError(f"--published {path} has {number}, which is no percentage from 0 to 100.")
    rows: list[dict[str, str]] = frame.to_dict("records")  # type: ignore[assignment]
    return [{str(key): str(text) for key, text in row.items() if text != ""} for row in rows]


def with_published(
    rows: Sequence[Row], reference: Sequence[Mapping[str, str]], runs: Sequence[FinishedRun]
) -> tuple[list[Row], list[str]]:
    """The rows with the numbers of papers at their places, and a sentence on each that belongs nowhere.

    Raises:
        UserError: two numbers for one place.
    """
    taken: list[dict[tuple[str, str], float]] = [{} for _ in rows]
    unmatched = []
    for entry in reference:
        places = [(index, key) for index, row in enumerate(rows) for key in row.figures if _fits(entry, row, key, runs)]
        for index, key in places:
            if key in taken[index]:
                raise UserError(
                    f"two published numbers belong to {_name(rows[index])}, {key[0]}: give the settings that tell them "
                    "apart as columns."
                )
            taken[index][key] = float(entry["published"]) / 100
        if not places:
            told = ", ".join(f"{name} {text}" for name, text in entry.items() if name != "source")
            unmatched.append(f"No run here is that of a published number ({told}).")
    return [replace(row, published=found) for row, found in zip(rows, taken, strict=True)], unmatched


def _fits(entry: Mapping[str, str], row: Row, key: tuple[str, str], runs: Sequence[FinishedRun]) -> bool:
    column, direction = key
    for name, text in entry.items():
        if name in ("published", "source"):
            continue
        if name == "attack":
            if column.partition(",")[0] not in (text, label_of(text)):
                return False
        elif name == "direction":
            if direction != text:
                return False
        elif name == "eps":
            if not _same_radius(column, text, runs):
                return False
        elif row.settings.get(name) != text:
            return False
    return True


def _same_radius(column: str, text: str, runs: Sequence[FinishedRun]) -> bool:
    """Whether ``text`` is the radius of the column, which tells it only where there are several."""
    wanted = parse_number("eps", text, node="published")
    told = column.partition(", ")[2]
    radii = [told] if told else [str(run.config.get("threat.eps")) for run in runs]
    return all(abs(parse_number("eps", each, node="threat") - wanted) <= 1e-9 for each in radii)


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
    names = [_shortened([row.settings.get(key, "") for row in joined.rows]) for key in shown_keys]
    rows = []
    for index, (row, *cells) in enumerate(zip(joined.rows, *names, strict=True)):
        for column in joined.columns:
            text = _cell(row, column, joined.directions, line_break)
            marked = text + (_SUSPECT if column in row.suspect else "")
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


def _name(row: Row) -> str:
    return " ".join(filter(None, row.settings.values()))


def _shortened(texts: Sequence[str]) -> list[str]:
    """Settings for the name of a row: of long ones, what stands behind the last stroke of each path, or their end;
    whole where two would look alike.
    """

    def short(text: str) -> str:
        bare = re.sub(r"[^\[\]{},:'\" ]*/", "", text).replace("'", "") if len(text) > _LONGEST else text
        return bare if len(bare) <= _LONGEST else "..." + bare[-_LONGEST + 3 :]

    made = {text: short(text) for text in texts}
    return [made[text] if list(made.values()).count(made[text]) == 1 else text for text in texts]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _notes(rows: Sequence[Row], found: RunsFound, measure: str, runs: Sequence[FinishedRun]) -> Iterable[str]:
    figures = [figure for row in rows for figure in row.figures.values()]
    seeds = sorted({figure.seeds for figure in figures if figure.seeds > 1})
    if seeds:
        number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        yield f"Over {number} seeds: mean and half of the 95 % t-interval."
    if any(figure.seeds == 1 and figure.spread for figure in figures):
        yield "± reaches to the farther end of the 95 % interval over images."
    suspect = sum(len(row.suspect) for row in rows)
    if suspect:
        yield f"{_SUSPECT} suspect: the diagnostics of the run say that a stronger attack would leave less."
    bare = [run for run in runs if not run.diagnosed and (run.figures["attack"] != CLEAN).any()]
    if bare:
        yield f"Not diagnosed: {_counted(len(bare), 'run')} of {len(runs)}."
    if found.open:
        reasons = [f"{path}: {why}" for path, why in found.open.items()]
        told = "; ".join([*reasons[:5], *(["..."] if len(reasons) > 5 else [])])
        yield f"Not in the table: {_counted(len(reasons), 'run')} ({told})."
    left = len(found.finished) - len(runs)
    if left or found.others:
        yield f"{_counted(left + len(found.others), 'finished run')} without a table of {measure} left out."
