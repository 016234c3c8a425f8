"""Paired comparison of two models that answered the same queries, maybe in two runs.

What both models find hard is in both answers and falls out of their difference: its interval is narrower than those of
the two numbers beside each other suggest.
"""

from pathlib import Path

import pandas as pd
import torch

from robustcli import metrics
from robustcli.attacks.core.threat import shown
from robustcli.evaluation.aggregate import at_radius, up_to_radius, with_worst
from robustcli.evaluation.records import BARE, CLEAN
from robustcli.report.runs import FinishedRun, read_run
from robustcli.report.tables import DIRECTIONS, Grid, label_of
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

_BUDGET = ("threat.norm", "threat.eps", "threat.edits", "threat.text", "threat.words", "threat.characters", "threat.at")
_QUERY = ["attack", "access", "direction", "query_id"]


def compare(first: Path, first_model: str | None, second: Path, second_model: str | None) -> Grid:
    """How often each of two models is right, and the difference on the same queries with its 95 % interval.

    Args:
        first, second: directories of finished runs; the same one for two models of one table.
        first_model, second_model: labels in the tables of the runs; None: the only one, or the last.

    Raises:
        UserError: no finished run with records, another model, or two that were not asked the same queries under the
            same threat model.
    """
    runs = [read_run(first), read_run(second)]
    _check_alike(*runs)
    labels = [_label(run, model) for run, model in zip(runs, (first_model, second_model), strict=True)]
    if labels[0] == labels[1] and runs[0].directory == runs[1].directory:
        raise UserError(f"{first} and {second} are the same model {labels[0]!r}: name two, DIR:MODEL.")
    tables = [_records(run, label) for run, label in zip(runs, labels, strict=True)]
    names = labels if labels[0] != labels[1] else [f"{run.directory.name}: {labels[0]}" for run in runs]
    rows = [
        _row(str(attack), str(access), str(direction), part, tables[1], names)
        for (attack, access, direction), part in tables[0].groupby(["attack", "access", "direction"], sort=False)
        if ((tables[1]["attack"] == attack) & (tables[1]["access"] == access)).any()
    ]
    heads = labels if labels[0] != labels[1] else ["A", "B"]  # names of runs would make the table too wide to read
    columns = ["attack", "direction", *heads, "difference", "95 % interval", f"only {heads[0]}", f"only {heads[1]}"]
    eps = runs[0].config.get("threat.eps")
    radius = "" if eps is None else f" at {shown(parse_number('eps', str(eps), node='threat'), runs[0].norm)}"
    lone = sorted({str(name) for name in set(tables[0]["attack"]) ^ set(tables[1]["attack"])})
    note = "Interval: cluster bootstrap over the images, which both models share; one without 0 is a difference."
    if heads != names:
        note = f"A: {names[0]}; B: {names[1]}. {note}"
    if lone:
        note += f" Left out, since one of the two was not attacked so: {', '.join(map(label_of, lone))}."
    return Grid(f"{names[1]} against {names[0]}, queries answered rightly in percent{radius}", columns, rows, note)


def _row(
    attack: str, access: str, direction: str, part: pd.DataFrame, other: pd.DataFrame, names: list[str]
) -> list[str]:
    beside = part.merge(other, on=_QUERY, how="outer", suffixes=("_a", "_b"), indicator=True)
    beside = beside[(beside["attack"] == attack) & (beside["access"] == access) & (beside["direction"] == direction)]
    if (beside["_merge"] != "both").any():
        number = int((beside["_merge"] != "both").sum())
        raise UserError(
            f"{names[0]} and {names[1]} were not asked the same: {number} queries ({label_of(attack)}) stand in one of "
            "them alone. Compare runs with the same dataset, evaluation.split and evaluation.limit."
        )
    a, b = (torch.tensor(beside[f"mean_{end}"].to_numpy(dtype="float64")) for end in "ab")
    images = torch.from_numpy(pd.factorize(beside["image_id_a"])[0])
    gap = metrics.bootstrap_difference(b, a, images)
    assert gap.mean is not None
    bounds = "-" if gap.low is None or gap.high is None else f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    told = "" if access in (CLEAN, "adaptive") else f" {access}"
    return [
        label_of(attack) + told,
        DIRECTIONS[direction],
        f"{100 * float(a.mean()):.1f}",
        f"{100 * float(b.mean()):.1f}",
        f"{100 * gap.mean:+.1f}",
        bounds,
        str(int((a > b).sum())),
        str(int((b > a).sum())),
    ]


def _check_alike(first: FinishedRun, second: FinishedRun) -> None:
    if first.data.split()[0] != second.data.split()[0]:
        raise UserError(
            f"{first.directory} and {second.directory} were judged on different data: there is no query that both "
            "answered."
        )
    other = [key for key in _BUDGET if first.config.get(key) != second.config.get(key)]
    if other:
        told = "; ".join(f"{key} is {first.config.get(key)} and {second.config.get(key)}" for key in other)
        raise UserError(f"the threat models differ ({told}): a difference would be that of the attackers.")


def _label(run: FinishedRun, wanted: str | None) -> str:
    labels = list(dict.fromkeys(map(str, run.figures["model"])))
    if wanted is None:
        return labels[-1]
    if wanted not in labels:
        raise UserError(f"{run.directory} has no model {wanted!r}: choose one of {', '.join(labels)}.")
    return wanted


def _records(run: FinishedRun, label: str) -> pd.DataFrame:
    """Records of the model at the radius of its table, the worst case of each query among them."""
    path = run.directory / "records.parquet"
    try:
        records = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    records = records[records["model"] == label]
    eps = run.config.get("threat.eps")
    radius = None if eps is None else parse_number("eps", str(eps), node="threat")
    if (records["defence"] != BARE).any() and radius is not None:
        clean = records[records["access"] == CLEAN]
        return pd.concat([clean, up_to_radius(records, radius)], ignore_index=True)
    return with_worst(at_radius(records, radius))
