"""Joining of finished runs into one table: a row a model of a run, a column an attack.

Runs that differ in their seed alone are one row, with the t-interval over the seeds; where all else is equal, runs on
several data sets have a row of their means.
"""

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.attacks.core.threat import shown
from robustcli.evaluation.records import CLEAN, WORST
from robustcli.report.joined import SUSPECT_MARK, Figure, Joined, Row
from robustcli.report.published import read_published, with_published
from robustcli.report.runs import FinishedRun, RunsFound
from robustcli.report.sweep import t_interval
from robustcli.report.tables import ATTACK_LABELS, directions_of, label_of
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

MEASURES = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision", "success_flip", "worst")
_TOLD_BY_COLUMNS = ("attack", "attacks", "threat.eps")  # settings whose runs may stand side by side in one row
_NO_BEARING = ("diagnostics", "device", "threads", "evaluation.batch_size")  # settings that change no number
_MEAN = "mean over"


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
    return [key for key in keys if len({setting(run, key) for run in runs}) > 1]


def setting(run: FinishedRun, key: str) -> str:
    """What a run set ``key`` to, or its config has it; empty for none."""
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
    settings = {key: setting(run, key) for key in varied}
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
        yield f"{SUSPECT_MARK} suspect: the diagnostics of the run say that a stronger attack would leave less."
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
