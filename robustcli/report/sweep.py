"""Table of a sweep: one row a job with its status, and means over data sets and over seeds where there are several."""

import math
import re
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from robustcli.config.overrides import key, text_of
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.sweeps import DONE, FAILED, STATES, WAITING, read_jobs, state_of
from robustcli.utils import files, locks
from robustcli.utils.errors import UserError, reason_of

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

STATE_COLUMNS = ("status", "directory", "error")


class SweepTable(Callback):
    """Hydra callback that keeps ``sweep.csv`` current after each job and prints the table at the end.

    The file is written after every job too, because Hydra skips the end of a sweep in which a job failed.

    Args:
        metrics: names or patterns (``*recall_at_1``) of the metrics that the printed tables show; the file holds all.
    """

    def __init__(self, metrics: Sequence[str] = ("objective",)) -> None:
        self.metrics = tuple(metrics)

    def __repr__(self) -> str:
        return f"SweepTable(metrics={self.metrics!r})"

    def on_job_end(self, config: "DictConfig", job_return: Any, **kwargs: Any) -> None:
        """Write the table anew, where the job is one of a sweep."""
        if str(config.hydra.mode).endswith("MULTIRUN"):
            with suppress(OSError, UserError):  # told at the end, if it is so then
                write(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: "DictConfig", **kwargs: Any) -> None:
        """Write the table and print it."""
        directory = Path(config.hydra.sweep.dir)
        try:
            write(directory)
        except (OSError, UserError) as error:  # of which Hydra would make a warning with a line of its code
            why = error if isinstance(error, UserError) else reason_of(error)
            print(f"error: the table of the sweep is not written: {why}", file=sys.stderr, flush=True)
            raise SystemExit(1) from error  # Hydra makes a warning of any other
        print_sweep(directory, self.metrics)
        with suppress(OSError):  # the tables are written and printed
            write_page(directory, self.metrics)
            print(f"report: {directory / 'report.html'}", flush=True)


def collect(directory: Path) -> "pd.DataFrame":
    """One row for each job of the sweep in ``directory``: its overrides, status, metrics, directory and error (first
    line).

    The status is one of `STATES`; so a sweep that still runs, or was stopped, has a row for each job that it was asked
    for.
    """
    import pandas as pd

    asked = {directory / job.directory: job.overrides for job in read_jobs(directory)}
    begun = [path for path in directory.iterdir() if path.is_dir() and _overrides_file(path)]
    rows = [_row(path, asked.get(path)) for path in sorted({*begun, *asked}, key=_natural)]
    settings = list(dict.fromkeys(key for row in rows for key in row[0]))
    metrics = list(dict.fromkeys(key for row in rows for key in row[2]))
    table = pd.DataFrame([{**settings, **state, **metrics} for settings, state, metrics in rows])
    ordered = [*settings, "status", *metrics, "directory", "error"]
    return table.reindex(columns=list(dict.fromkeys(ordered)))


def write(directory: Path) -> "pd.DataFrame":
    """Collect the jobs and write ``sweep.csv`` and, where they were swept, ``seeds.csv`` and ``datasets.csv``."""
    # Jobs that run side by side end at the same time: the last to get the lock sees all that ended before.
    with locks.exclusive(directory / ".lock"):
        table = collect(directory)
        with files.atomic(directory / "sweep.csv") as path:
            table.to_csv(path, index=False)
        for name, means in (("seeds.csv", over_seeds(table)), ("datasets.csv", over_datasets(table))):
            if means is not None:
                with files.atomic(directory / name) as path:
                    means.to_csv(path, index=False)
    return table


def over_seeds(table: "pd.DataFrame") -> "pd.DataFrame | None":
    """Mean and 95 % t-interval of every metric over the finished seeds of each setting; None where no setting has two.

    A seed of a part that is that of the job (``dataset.seed='${seed}'``) is none of its settings.

    One row for each setting and metric: the settings, ``metric``, ``seeds`` (how many), ``mean``, ``low``, ``high``.
    An interval needs two seeds; with one, ``low`` and ``high`` are empty.
    """
    import pandas as pd

    if "seed" not in table:
        return None
    done = table[table["status"] == "done"]
    keys = [key for key in _settings(table) if key.rpartition(".")[2] != "seed" or not table[key].equals(table["seed"])]
    groups: list[tuple[Any, Any]] = list(done.groupby(keys, dropna=False, sort=False)) if keys else [((), done)]
    if all(len(group) < 2 for _, group in groups):
        return None
    rows = [
        dict(zip(keys, values, strict=True)) | {"metric": metric} | _mean_interval(group[metric].dropna().tolist())
        for values, group in groups
        for metric in _metrics(table)
    ]
    return pd.DataFrame(rows)


def over_datasets(table: "pd.DataFrame") -> "pd.DataFrame | None":
    """Unweighted mean of every recall (of classes: accuracy) over the data sets of each setting; None where no setting
    has two.

    One row a setting: the settings, ``datasets`` (how many are in the mean), ``asked`` (how many should be),
    ``missing`` (the others, that failed or have not ended), and the means. One that a finished set lacks is empty.
    """
    import pandas as pd

    if "dataset" not in table:
        return None
    keys = [key for key in _settings(table) if key != "dataset"]
    groups: list[tuple[Any, Any]] = list(table.groupby(keys, dropna=False, sort=False)) if keys else [((), table)]
    recalls = [metric for metric in _metrics(table) if re.search(r"(^|/)recall_at_\d+$", metric)]
    rows = []
    for values, group in groups:
        done = group[group["status"] == "done"]
        if group["dataset"].nunique() < 2 or not len(done):
            continue
        missing = ", ".join(group.loc[group["status"] != "done", "dataset"])
        counts = {"datasets": len(done), "asked": len(group), "missing": missing}
        means = {metric: done[metric].astype(float).mean(skipna=False) for metric in recalls}
        rows.append(dict(zip(keys, values, strict=True)) | counts | means)
    return pd.DataFrame(rows) if rows else None


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of two or more independent values, by Student's t."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def print_sweep(directory: Path, metrics: Sequence[str] = ("objective",)) -> None:
    """Print the jobs of a sweep and, where seeds were swept, the means over them."""
    table = collect(directory)
    print_grid(jobs_grid(table, metrics))
    means = over_seeds(table)
    if means is not None:
        print_grid(seeds_grid(means, metrics))
    print(f"table: {directory / 'sweep.csv'}")


def write_page(directory: Path, metrics: Sequence[str] = ("objective",)) -> None:
    """Write ``report.html`` of a sweep: the printed tables as a page."""
    from robustcli.report.html import render_tables

    table = collect(directory)
    means = over_seeds(table)
    grids = [jobs_grid(table, metrics), *([] if means is None else [seeds_grid(means, metrics)])]
    files.write_text(directory / "report.html", render_tables(f"Sweep {'/'.join(directory.parts[-2:])}", grids))


def jobs_grid(table: "pd.DataFrame", metrics: Sequence[str] = ("objective",)) -> Grid:
    """One line a job: what was swept (all overrides where nothing varies), status, chosen metrics, errors; and one with
    the mean over data sets of each setting that has several.
    """
    settings = _settings(table)
    varied = [key for key in settings if table[key].nunique(dropna=False) > 1] or settings
    chosen = _chosen(_metrics(table), metrics)
    columns = [*varied, "status", *chosen, *(["error"] if table["error"].notna().any() else [])]
    rows = [[_text(row[column]) for column in columns] for _, row in table.iterrows()]
    counts = {state: int((table["status"] == state).sum()) for state in STATES}
    notes = []
    if counts[FAILED]:
        notes.append(f"{counts[FAILED]} of {len(table)} jobs failed; FAILED in their directories says why.")
    means = over_datasets(table)
    for _, row in means.iterrows() if means is not None else ():
        some = f"{row['datasets']} of " if row["missing"] else ""
        shown = {key: _text(row.get(key)) for key in columns} | {"dataset": f"mean of {some}{row['asked']}"}
        rows.append([shown[column] for column in columns])
        if row["missing"]:
            notes.append(f"The mean of {some}{row['asked']} data sets is not one of all: without {row['missing']}.")
    title = f"{len(table)} jobs"
    if counts[DONE] < len(table):
        title += ": " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return Grid(title=title, columns=columns, rows=rows, note=" ".join(dict.fromkeys(notes)))


def seeds_grid(means: "pd.DataFrame", metrics: Sequence[str] = ("objective",)) -> Grid:
    """One column a setting and one row a metric: mean and half the width of its 95 % interval over seeds."""
    keys = [key for key in means.columns if key not in ("metric", "seeds", "mean", "low", "high")]
    varied = [key for key in keys if means[key].nunique(dropna=False) > 1]
    names = [" ".join(_text(row[key]) for key in varied) or "all" for _, row in means.iterrows()]
    cells = means.assign(setting=names).set_index(["metric", "setting"])
    columns = list(dict.fromkeys(names))
    chosen = _chosen(list(dict.fromkeys(means["metric"])), metrics)
    rows = [[metric, *(_interval_text(cells.loc[(metric, column)]) for column in columns)] for metric in chosen]
    counts = sorted(set(means["seeds"]) - {0}) or [0]
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = f"Over {number} seeds" + (f", by {', '.join(varied)}" if varied else "")
    return Grid(title, ["metric", *columns], rows, "Mean ± half of the 95 % t-interval over the seeds.")


def _row(job: Path, asked: Sequence[str] | None) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Overrides, state and metrics of a job; ``asked``: its overrides as the list of the sweep has them."""
    words = _overrides_file(job)
    settings = dict(_split(item) for item in (files.read_yaml(words) if words else asked or ()))
    metrics: dict[str, Any] = files.read_json(job / "metrics.json") if (job / "metrics.json").exists() else {}
    status, error = state_of(job), None
    if status == FAILED:
        error = ((job / "FAILED").read_text(encoding="utf-8").splitlines() or [""])[0]
    elif status == WAITING and asked is None:
        status, error = FAILED, "stopped before its run began"
    return settings, {"status": status, "directory": str(job), "error": error}, metrics if status == DONE else {}


def _overrides_file(job: Path) -> Path | None:
    # A job that failed before its run was opened left only what Hydra writes.
    places = (job / "overrides.yaml", job / ".hydra" / "overrides.yaml")
    return next((path for path in places if path.exists()), None)


def _split(override: str) -> tuple[str, str]:
    name, value = key(override), text_of(override)
    # The group ``objective`` of train-classifier is not the figure of that name.
    return f"{name}=" if name in ("objective", *STATE_COLUMNS) else name, value


def _natural(path: Path) -> tuple[bool, int, str]:
    return (not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name)


def _settings(table: "pd.DataFrame") -> list[str]:
    return list(table.columns[: list(table.columns).index("status")])


def _metrics(table: "pd.DataFrame") -> list[str]:
    others = {*_settings(table), *STATE_COLUMNS}
    return [column for column in table.columns if column not in others]


def _chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for pattern in patterns for name in names if fnmatch(name, pattern)))


def _mean_interval(values: Sequence[float]) -> dict[str, Any]:
    numbers = [float(value) for value in values]
    low, high = t_interval(numbers) if len(numbers) > 1 else (math.nan, math.nan)
    return {"seeds": len(numbers), "mean": statistics.fmean(numbers) if numbers else math.nan, "low": low, "high": high}


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval_text(cell: Any) -> str:
    if not cell["seeds"]:
        return "-"  # measured in no job of the setting
    if math.isnan(cell["low"]):
        return f"{cell['mean']:.4g}"
    half = (cell["high"] - cell["low"]) / 2
    decimals = 3 if half == 0 else max(0, 1 - math.floor(math.log10(half)))  # two digits of the half-width count
    return f"{cell['mean']:.{decimals}f} ±{half:.{decimals}f}"
