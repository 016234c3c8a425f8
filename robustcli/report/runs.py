"""Figures of finished runs, read back from their directories to be put into one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from robustcli.config.overrides import key, text_of
from robustcli.diagnostics import SUSPECT
from robustcli.evaluation.records import CLEAN
from robustcli.runs.finished import is_run, why_open
from robustcli.utils import files
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import flatten
from robustcli.utils.numbers import parse_number

_FIGURES = {"model", "defence", "attack", "access", "eps", "direction", "recall_at_1"}
_NOT_SETTINGS = ("hydra.", "hydra/", "resume")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run that evaluated models under attacks.

    Attributes:
        settings: key -> value of its overrides.
        config: dotted key -> value of its whole config.
        data: fingerprint of the split that it judged, and how many images of it.
        norm: of its threat model.
        figures: rows of its ``metrics.csv`` without attack, at the radius of its threat model, or without radius.
        diagnosed, suspect: (model, attack) of the numbers that its diagnostics looked at, and of those not believed.
    """

    directory: Path
    settings: Mapping[str, str]
    config: Mapping[str, object]
    data: str
    norm: str
    figures: pd.DataFrame
    diagnosed: frozenset[tuple[str, str]]
    suspect: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class RunsFound:
    """The runs below some directories.

    Attributes:
        finished: those with a table of attacks, in the order of their directories.
        open: directory -> why it has none yet: it failed, or it still runs or was killed.
        others: finished runs that judge nothing under attack, such as those of generators.
    """

    finished: Sequence[FinishedRun]
    open: Mapping[Path, str]
    others: Sequence[Path]


def find_runs(directories: Sequence[Path]) -> RunsFound:
    """Every run in ``directories`` or below them, each once; sweeps that are still running too.

    Raises:
        UserError: no such directory, one without runs, or a run whose files are damaged.
    """
    finished: list[FinishedRun] = []
    begun: dict[Path, str] = {}
    others: list[Path] = []
    for directory in dict.fromkeys(place for each in directories for place in _places(each)):
        if not (directory / "DONE").exists():
            begun[directory] = why_open(directory)
        elif _holds_figures(directory):
            finished.append(read_run(directory))
        else:
            others.append(directory)
    return RunsFound(finished, begun, others)


def read_run(directory: Path) -> FinishedRun:
    """The finished run of ``directory``.

    Raises:
        UserError: it is not finished, judged nothing under attack, or its files are damaged.
    """
    if not (directory / "DONE").exists():
        raise UserError(f"{directory} holds no finished run: {why_open(directory)}.")
    if not _holds_figures(directory):
        raise UserError(f"{directory} holds no table of models under attacks: name a run that has one.")
    try:
        config = flatten(files.read_yaml(directory / "config.yaml"))
        manifest = files.read_json(directory / "manifest.json")
        words: list[str] = files.read_yaml(directory / "overrides.yaml") or []
        figures = pd.read_csv(directory / "metrics.csv")
        radius = config.get("threat.eps")
        split = str(config["evaluation.split"])
        diagnosed, suspect = _verdicts(directory / "diagnostics.csv")
        return FinishedRun(
            directory=directory,
            settings={key(word): text_of(word) for word in words if not key(word).startswith(_NOT_SETTINGS)},
            config=config,
            data=f"{manifest['data'][split]['fingerprint']} {config.get('evaluation.limit')}",
            norm=str(config.get("threat.norm", "linf")),
            figures=_at_radius(figures, None if radius is None else parse_number("eps", str(radius), node="threat")),
            diagnosed=diagnosed,
            suspect=suspect,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"the run in {directory} cannot be read ({type(error).__name__}: {error}).") from error


def _places(directory: Path) -> list[Path]:
    """Directories of runs: ``directory`` itself, or those below it that stand in no other."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: name those of runs or sweeps, such as outputs/evaluate.")
    if is_run(directory):
        return [directory.absolute()]
    names = {path.parent.absolute() for name in ("manifest.json", "FAILED") for path in directory.rglob(name)}
    found = sorted(place for place in names if is_run(place) and not names & set(place.parents))
    if not found:
        raise UserError(f"there is no run in {directory} or below it.")
    return found


def _holds_figures(directory: Path) -> bool:
    path = directory / "metrics.csv"
    if not path.is_file():
        return False
    try:
        return set(pd.read_csv(path, nrows=0).columns) >= _FIGURES
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def _at_radius(figures: pd.DataFrame, radius: float | None) -> pd.DataFrame:
    """The rows of the table itself: those of a curve over other radii are left out."""
    free = (figures["attack"] == CLEAN) | figures["eps"].isna()
    at = free if radius is None else free | ((figures["eps"] - radius).abs() <= 1e-9)
    keys = ["model", "defence", "attack", "access", "eps", "direction"]
    return figures[at].drop_duplicates(keys).reset_index(drop=True)


def _verdicts(path: Path) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    if not path.is_file():
        return frozenset(), frozenset()
    found = pd.read_csv(path, dtype={"model": str, "attack": str})
    numbers = list(zip(found["model"], found["attack"], strict=True))
    suspect = found["status"] == SUSPECT
    return frozenset(numbers), frozenset(number for number, bad in zip(numbers, suspect, strict=True) if bad)
