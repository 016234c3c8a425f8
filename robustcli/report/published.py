"""Numbers of papers, to stand beside the measured ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from robustcli.report.joined import Row
from robustcli.report.runs import FinishedRun
from robustcli.report.tables import label_of
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number


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


def _name(row: Row) -> str:
    return " ".join(filter(None, row.settings.values()))
