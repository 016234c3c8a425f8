"""``robustcli rerun DIR``: reproduction of a run from its directory, and comparison number by number."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from robustcli.cli.commands import find
from robustcli.cli.recorded import read_entry, read_mapping, read_overrides, refuse_untrusted
from robustcli.config.overrides import quoted
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.manifest import INPUTS, NOT_COMPARED, new_directory
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import ABSENT, differences
from robustcli.utils.world import world_of

if TYPE_CHECKING:
    import pandas as pd

# Names of measurements of time and memory, the only numbers that two equal runs do not share.
MEASURED = ("seconds", "per_second", "mib")
SURROUNDINGS = ("code", "packages", "machine", "torch", "device", "seeds", *INPUTS)
BOUNDED = {"trainer.max_steps", "trainer.max_seconds"}
BUDGETED = {"evaluation.limit", "evaluation.budget_minutes"}
# Settings of the launcher that say where and how the old run ran; the new one has its own.
_OF_THE_OLD_RUN = ("resume", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher")


@dataclass(frozen=True)
class Comparison:
    """Differences between a run and its reproduction, each as (name, before, after).

    Attributes:
        numbers: of metrics and of columns of the records; empty if every number is the same.
        config: of settings of the composed config.
        surroundings: of code, packages, machine, torch, data and weights.
        counts: number of metrics and of records compared.
    """

    numbers: list[tuple[str, str, str]]
    config: list[tuple[str, str, str]] = field(default_factory=list)
    surroundings: list[tuple[str, str, str]] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)

    @property
    def identical(self) -> bool:
        """True where every number is the same."""
        return not self.numbers


def rerun(directory: Path, parent: Path | None = None, *, trust: bool = False) -> int:
    """Reproduce the run in ``directory`` in a new one under ``parent`` (default ``outputs/rerun``); print differences.

    Returns 0 if every number is the same, 1 if not or if the reproduction failed, above 128 if it was stopped.

    Args:
        trust: run what the run names from outside of robustcli.

    Raises:
        UserError: ``directory`` is no finished run, or one that cannot be reproduced, see `rebuild_arguments`, or
            reaches for code that is not of robustcli without ``trust``; or this is one of several processes.
    """
    from robustcli.cli.launch import launch, one_sentence
    from robustcli.config.checks import refuse_foreign
    from robustcli.config.compose import compose

    if (world := world_of()) is not None:
        world.refuse(f"and a run is rebuilt by one: start rerun {world.once}.")
    old = directory.absolute()
    manifest = finished(old)
    command = find(read_entry(manifest, "command", str, old)).name
    argv = rebuild_arguments(old)
    if not trust:
        refuse_untrusted(old, argv)
        with one_sentence(command, argv):
            refuse_foreign(OmegaConf.to_container(compose(command, argv)))
    new = new_directory((parent or Path("outputs") / "rerun").absolute())
    with inside(Path(read_entry(manifest, "working_directory", str, old))):
        code = launch(command, [*argv, f"hydra.run.dir={quoted(new)}"], trusted=trust)
    if code != 0:
        print(f"the rebuilding ended with exit code {code}" + (f"; see {new}" if new.exists() else ""))
        return code if code >= 128 else 1
    comparison = compare(old, new)
    print_comparison(comparison, old, new)
    return 0 if comparison.identical else 1


def rebuild_arguments(directory: Path) -> list[str]:
    """The command-line arguments that reproduce the run in ``directory``.

    A training bounded by time is bounded by its number of steps instead, and a budget of minutes by its number of
    images: a clock gives no two equal runs.

    Raises:
        UserError: a training bounded by time whose metrics lack the number of its steps.
    """
    recorded = read_overrides(directory / "overrides.yaml")
    overrides = [item for item in recorded if _key(item) not in _OF_THE_OLD_RUN]
    limit = _seconds_allowed(directory)
    if limit is not None:
        steps = read_mapping(directory / "metrics.json").get("train/steps")
        if not isinstance(steps, int | float):
            raise UserError(
                f"{directory} was trained for trainer.max_seconds={limit}, but its metrics.json lacks train/steps, "
                "without which it cannot be rebuilt: train with trainer.max_steps and trainer.max_seconds=null"
            )
        overrides = [item for item in overrides if _key(item) not in BOUNDED]
        overrides += [f"trainer.max_steps={int(steps)}", "trainer.max_seconds=null"]
    if (budget := read_mapping(directory / "manifest.json").get("budget")) is not None:
        overrides = [item for item in overrides if _key(item) not in BUDGETED]
        overrides += [f"evaluation.limit={int(budget['images'])}", "evaluation.budget_minutes=null"]
    command_line = read_entry(read_mapping(directory / "manifest.json"), "command_line", list, directory)
    return [*_config_directories([str(word) for word in command_line]), *overrides]


def compare(old: Path, new: Path) -> Comparison:
    """Compare two finished runs: metrics and records exactly, then config and surroundings."""
    metrics = [read_mapping(place / "metrics.json") for place in (old, new)]
    before, after = ({key: value for key, value in each.items() if not _measured(key)} for each in metrics)
    # Exact equality, no tolerance: equal seeds, code and machine give equal bits on a CPU.
    numbers = [(key, str(first), str(second)) for key, (first, second) in differences(before, after).items()]
    records = [read_records(place) for place in (old, new)]
    numbers += _record_differences(*records)
    budgeted = read_mapping(old / "manifest.json").get("budget") is not None
    ignore = {*NOT_COMPARED, *(BOUNDED if _seconds_allowed(old) is not None else ())}
    ignore |= BUDGETED if budgeted else set()
    configs = [read_mapping(place / "config.yaml") for place in (old, new)]
    manifests = [read_mapping(place / "manifest.json") for place in (old, new)]
    known = [{key: each[key] for key in SURROUNDINGS if key in each} for each in manifests]
    return Comparison(
        numbers=numbers,
        config=_rows(differences(configs[0], configs[1], ignore)),
        surroundings=_rows(differences(known[0], known[1], ("machine.host",))),
        counts=(len(before), 0 if records[0] is None else len(records[0])),
    )


def print_comparison(comparison: Comparison, old: Path, new: Path) -> None:
    """Print the verdict and a table of each kind of difference."""
    print(f"before: {old}\nafter:  {new}\n")
    for title, rows in (
        ("Numbers that differ", comparison.numbers),
        ("Settings that differ: the configuration has changed since", comparison.config),
        ("Surroundings that differ: equal bits hold for equal ones only", comparison.surroundings),
    ):
        if rows:
            print_grid(Grid(title, ["name", "before", "after"], rows))
    metrics, records = comparison.counts
    if comparison.identical:
        print(f"identical: {metrics} metrics and {records} records")
    else:
        print(f"different: {len(comparison.numbers)} differences in {metrics} metrics and {records} records")


def finished(directory: Path) -> dict[str, Any]:
    """The manifest of the finished run in ``directory``, whose config, metrics and records can be read.

    Raises:
        UserError: it is no such run.
    """
    if (directory / "multirun.yaml").exists():
        raise UserError(f"{directory} is a sweep: name one of its jobs, for example {directory / '0'}")
    if not (directory / "config.yaml").exists():
        raise UserError(f"{directory} is no run: a run has a config.yaml, a manifest.json and a DONE marker")
    if not (directory / "DONE").exists():
        raise UserError(f"the run in {directory} is not finished: finish it with resume={directory}, then compare")
    # All that is compared in the end, before the long work.
    for name in ("config.yaml", "metrics.json"):
        read_mapping(directory / name)
    read_records(directory)
    return read_mapping(directory / "manifest.json")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _config_directories(command_line: Sequence[str]) -> list[str]:
    found: list[str] = []
    for index, word in enumerate(command_line):
        if word in ("--config-dir", "-cd"):
            found += ["--config-dir", *command_line[index + 1 : index + 2]]
        elif word.startswith("--config-dir="):
            found.append(word)
    return found


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Context with the working directory of an old command line."""
    # Relative paths of the old command line hold from where it was typed; where that is gone, from here.
    with contextlib.chdir(directory if directory.is_dir() else Path.cwd()):
        yield


def _seconds_allowed(directory: Path) -> Any:
    """``trainer.max_seconds`` of the run; None where there is no such bound."""
    trainer = read_mapping(directory / "config.yaml").get("trainer")
    return trainer.get("max_seconds") if isinstance(trainer, dict) else None


def _measured(name: str) -> bool:
    return name.endswith(MEASURED)


def _rows(found: Mapping[str, tuple[Any, Any]]) -> list[tuple[str, str, str]]:
    return [(key, str(old), str(new)) for key, (old, new) in found.items()]


def read_records(directory: Path) -> "pd.DataFrame | None":
    """The records of the run in ``directory``; None where it has none.

    Raises:
        UserError: they are damaged.
    """
    import pandas as pd

    path = directory / "records.parquet"
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except Exception as error:  # whatever pyarrow raises for bytes that are no table
        raise UserError(f"{path} cannot be read: the directory is damaged; begin a run of its own instead.") from error


def _record_differences(old: "pd.DataFrame | None", new: "pd.DataFrame | None") -> list[tuple[str, str, str]]:
    if old is None or new is None:
        before, after = (ABSENT if each is None else "present" for each in (old, new))
        return [] if before == after else [("records.parquet", before, after)]
    if len(old) != len(new):
        return [("records: rows", str(len(old)), str(len(new)))]
    names = [name for name in dict.fromkeys([*old.columns, *new.columns]) if not _measured(name)]
    rows = [_column_difference(name, old, new) for name in names]
    return [row for row in rows if row is not None]


def _column_difference(name: str, old: "pd.DataFrame", new: "pd.DataFrame") -> tuple[str, str, str] | None:
    if name not in old or name not in new:
        return (f"records: {name}", "present" if name in old else ABSENT, "present" if name in new else ABSENT)
    before, after = old[name], new[name]
    same = ((before == after).fillna(False).astype(bool) | (before.isna() & after.isna())).to_numpy()
    if same.all() and before.dtype == after.dtype:
        return None
    if same.all():
        return (f"records: {name}", f"type {before.dtype}", f"type {after.dtype}")
    row = int((~same).argmax())
    return (f"records: {name} ({(~same).sum()} rows, first {row})", str(before.iloc[row]), str(after.iloc[row]))
