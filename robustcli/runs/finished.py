"""Finished runs, read back from their directories."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robustcli.utils import files
from robustcli.utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run; its tables are read when they are first asked for.

    Attributes:
        directory: absolute.
        command: as typed, such as ``train-mat``.
        config: the whole composed config as nested mappings.
        overrides: as they were typed, with the value of what one refers to.
        metrics: name, with slashes, -> number.
        manifest: code, packages, machine, seeds, fingerprints and times.
        figures, checkpoints: name without suffix -> file; ``figures["training"]``, ``checkpoints["last"]``.
        report, page: ``report.md`` and ``report.html``; None of a run without.
    """

    directory: Path
    command: str
    config: Mapping[str, Any] = field(repr=False)
    overrides: tuple[str, ...]
    metrics: Mapping[str, float] = field(repr=False)
    manifest: Mapping[str, Any] = field(repr=False)
    figures: Mapping[str, Path] = field(repr=False)
    checkpoints: Mapping[str, Path] = field(repr=False)
    report: Path | None = field(repr=False)
    page: Path | None = field(repr=False)

    @cached_property
    def records(self) -> "pd.DataFrame":
        """``records.parquet``: one row a query, model, attack, access and radius.

        Raises:
            UserError: the run has none, or the file is damaged.
        """
        return self._table("records.parquet")

    @cached_property
    def table(self) -> "pd.DataFrame":
        """``metrics.csv``: one row a model, attack, access, radius and direction, with intervals.

        Raises:
            UserError: the run has none, or the file is damaged.
        """
        return self._table("metrics.csv")

    @cached_property
    def diagnostics(self) -> "pd.DataFrame":
        """``diagnostics.csv``: one row a check of a number; without rows where none was run.

        Raises:
            UserError: the file is damaged.
        """
        import pandas as pd

        empty = pd.DataFrame(columns=["check", "status", "measured", "advice", "model", "attack"])
        return self._table("diagnostics.csv") if (self.directory / "diagnostics.csv").is_file() else empty

    def _table(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        path = self.directory / name
        if not path.is_file():
            held = ", ".join(
                sorted(each.name for each in self.directory.iterdir() if each.suffix in (".parquet", ".csv"))
            )
            raise UserError(
                f"{self.directory} is a run of {self.command} without {name}; it has {held or 'no tables'}."
            )
        try:
            return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}).") from error


def load_run(directory: str | Path) -> LoadedRun:
    """The finished run of ``directory``: config, metrics, records, and where its files stand.

    Raises:
        UserError: there is no run, it failed or is not finished, or its files are damaged.
    """
    place = Path(directory).expanduser().absolute()
    if not place.is_dir():
        raise UserError(f"{place} does not exist: name the directory of a run, such as one under outputs/.")
    if not (place / "DONE").is_file():
        raise UserError(f"{place} holds no finished run: {why_open(place)}.")
    try:
        manifest, metrics = (files.read_json(place / name) for name in ("manifest.json", "metrics.json"))
        return LoadedRun(
            directory=place,
            command=str(manifest["command"]),
            config=dict(files.read_yaml(place / "config.yaml")),
            overrides=tuple(map(str, files.read_yaml(place / "overrides.yaml") or [])),
            metrics=dict(metrics),
            manifest=dict(manifest),
            figures=_files(place / "figures"),
            checkpoints=_files(place / "checkpoints"),
            report=_if_there(place / "report.md"),
            page=_if_there(place / "report.html"),
        )
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"the run in {place} cannot be read ({type(error).__name__}: {error}).") from error


def is_run(directory: Path) -> bool:
    """True of the directory of a run, finished or not."""
    return any((directory / name).is_file() for name in ("manifest.json", "FAILED"))


def why_open(directory: Path) -> str:
    """Why a directory holds no finished run, to go on a sentence."""
    failed = directory / "FAILED"
    if failed.is_file():
        lines = failed.read_text(encoding="utf-8", errors="replace").splitlines()
        return "it failed: " + (lines or ["no reason is given"])[0]
    if not is_run(directory):
        sweep = (directory / "multirun.yaml").is_file() or (directory / "sweep.csv").is_file()
        return "it is a sweep, name one of its jobs" if sweep else "there is no run"
    return "it still runs or was stopped"


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*")) if path.is_file()}


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
