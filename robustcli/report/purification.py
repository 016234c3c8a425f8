"""The table of a purification paper over finished runs: clean and robust accuracy at every bound, by attack, over all
images and over those that were right at first; and the picture of it over the bound.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.attacks.core.threat import NORMS, shown
from robustcli.evaluation.records import BARE, CLEAN, WORST
from robustcli.evaluation.robust_table import ALL, robust_table
from robustcli.report.figures import lines
from robustcli.report.join import over_seeds, setting, varied_settings
from robustcli.report.joined import SUSPECT_MARK, Figure, Joined, Row, label_of_row
from robustcli.report.runs import FinishedRun, RunsFound
from robustcli.report.tables import directions_of, label_of
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

MEASURES = ("recall_at_1", "claimed")


def join_purified(found: RunsFound, *, measure: str = "recall_at_1") -> Joined:
    """The table of the runs of ``found`` that judged defences.

    Args:
        measure: ``recall_at_1``, by fresh answers, or ``claimed``, as the paper counts, see `robust_table`.

    Raises:
        UserError: an unknown measure, no such run, runs of several norms, or one whose records are gone or have no
            number of that kind.
    """
    if measure not in MEASURES:
        raise UserError(f"--measure {measure} is none of this form: choose one of {', '.join(MEASURES)}.")
    runs = [run for run in found.finished if (run.figures["defence"] != BARE).any()]
    if not runs:
        raise UserError("no finished run there judged a purifier or another defence: leave --form out.")
    norms = sorted({run.norm for run in runs})
    if len(norms) > 1:
        known = " and ".join(NORMS[norm] for norm in norms)
        raise UserError(f"the runs have bounds of {known} norms, which are no one table: name runs of one norm.")
    tables = [robust_table(_records(run), _radii(run), claimed=measure == "claimed") for run in runs]
    whole = pd.concat(tables, ignore_index=True)
    if (whole["attack"] == CLEAN).all():
        raise UserError(
            "no minimum-norm attack that knew the defence is in these runs, so that none claimed a change: leave "
            "--measure out."
        )
    varied, columns = varied_settings(runs), _columns(runs, whole)
    rows = [row for run, table in zip(runs, tables, strict=True) for row in _rows_of(run, table, varied, dict(columns))]
    return Joined(
        measure=measure,
        columns=list(dict.fromkeys(columns.values())),
        directions=directions_of(whole),
        rows=over_seeds(rows),
        notes=list(_notes(found, runs, rows, measure)),
    )


def draw_bounds(joined: Joined, path: Path) -> None:
    """One line a purifier: accuracy under the worst attack over the bound, all images counted.

    Args:
        path: the PNG to write.
    """
    points = []
    worst = label_of(WORST)
    for row in (row for row in joined.rows if row.settings["counted over"] == ALL):
        name = label_of_row(row, joined.rows)
        for (column, direction), figure in row.figures.items():
            attack, _, bound = column.rpartition(" ")
            if column == label_of(CLEAN) or attack == worst:
                eps = 0.0 if attack != worst else parse_number("eps", bound, node="report")
                points.append(
                    {
                        "model": name,
                        "direction": direction,
                        "eps": eps,
                        "accuracy": figure.value,
                        "accuracy_low": figure.low,
                        "accuracy_high": figure.high,
                    }
                )
    lines(
        pd.DataFrame(points),
        path,
        x="eps",
        y="accuracy",
        x_label="bound of the change, pixels in [0, 1]",
        y_label="right answers (%)",
        title="Under the worst of all attacks, all images counted",
    )


def _records(run: FinishedRun) -> pd.DataFrame:
    path = run.directory / "records.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the table of purification is made of records.") from error


def _radii(run: FinishedRun) -> list[float]:
    """The bounds of a run, small to large: those of its curve and that of its table."""
    curve: Any = run.config.get("evaluation.eps_curve") or []
    given = [*curve, run.config.get("threat.eps")]
    return sorted({parse_number("eps", each, node="threat") for each in given if each is not None} - {0.0})


def _columns(runs: Sequence[FinishedRun], whole: pd.DataFrame) -> Mapping[tuple[str, str], str]:
    """(attack, bound as text) -> name, in the order of the table; the worst of all last."""
    norm = runs[0].norm
    attacks = [each for each in dict.fromkeys(whole["attack"]) if each not in (CLEAN, WORST)]
    bounds = [shown(eps, norm) for eps in sorted(set(whole["eps"].dropna()))]
    told = {(attack, bound): f"{label_of(attack)} {bound}" for attack in [*attacks, WORST] for bound in bounds}
    return {(CLEAN, ""): label_of(CLEAN), **told}


def _rows_of(
    run: FinishedRun, table: pd.DataFrame, varied: Sequence[str], columns: Mapping[tuple[str, str], str]
) -> list[Row]:
    settings = {key: setting(run, key) for key in varied}
    rows = []
    for (model, counted), part in table.groupby(["model", "counted"], sort=False):
        figures, suspect = {}, set()
        attacked = {attack for label, attack in run.suspect if label == model}
        for each in part[part["accuracy"].notna()].to_dict("records"):
            bound = "" if math.isnan(each["eps"]) else shown(float(each["eps"]), run.norm)
            column = columns[str(each["attack"]), bound]
            low, high = (
                math.nan if each[f"accuracy_{end}"] is None else each[f"accuracy_{end}"] for end in ("low", "high")
            )
            figures[column, str(each["direction"])] = Figure(float(each["accuracy"]), float(low), float(high))
            if each["attack"] in attacked or (each["attack"] == WORST and attacked):
                suspect.add(column)
        row = Row(
            settings=settings | {"row": str(model), "counted over": str(counted)},
            comparable=f"{run.data} {counted}",
            figures=figures,
            suspect=frozenset(suspect),
            published={},
        )
        rows.append(row)
    return rows


def _notes(found: RunsFound, runs: Sequence[FinishedRun], rows: Sequence[Row], measure: str) -> Sequence[str]:
    notes = [f"Bounds are {NORMS[runs[0].norm]} norms, pixels in [0, 1]; attacks are those that knew the defence."]
    if measure == "claimed":
        notes.append(
            "Robust at a bound is an image for which the attack claimed no smaller change, by the answers that it saw "
            "itself; an image that is wrong at first has a change of 0. Without --measure fresh answers judge."
        )
    else:
        notes.append("Judged on fresh answers; worst: for each image what hurts most, of attackers of every access.")
    notes.append("Right at first: by most of the fresh answers to the clean image.")
    without = [run for run in runs if not (run.figures["access"] == "adaptive").any()]
    if without:
        notes.append(f"NO ADAPTIVE ATTACK in {len(without)} of {len(runs)} runs: nothing is known of their robustness.")
    if any(row.suspect for row in rows):
        notes.append(f"{SUSPECT_MARK} suspect: the diagnostics of the run say that a stronger attack would leave less.")
    if found.open:
        notes.append(f"Not in the table: {len(found.open)} unfinished or failed.")
    left = len(found.finished) - len(runs) + len(found.others)
    if left:
        notes.append(f"Without a defence and left out: {left}.")
    return notes
