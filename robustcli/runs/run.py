"""The directory of a run: the one place where its config, provenance, numbers, pictures and markers are written.

A directory is claimed by a lock, so that two live processes never work on the same one; every file appears whole or
not at all; ``DONE`` marks a finished run, ``FAILED`` one that raised, and neither one that was killed and can go on.
"""

import logging
import math
import re
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from robustcli.runs import provenance
from robustcli.runs.manifest import begin_run, check_ours, check_same, discard, failed_at_once, now, resume_run
from robustcli.runs.parts import records_part
from robustcli.runs.receipts import output_hashes
from robustcli.runs.trackers import Trackers, open_trackers, tracker_names
from robustcli.utils import files, locks
from robustcli.utils.errors import SuspectClaim, UserError, behind
from robustcli.utils.flatten import differences, flatten, plain
from robustcli.utils.stops import stop_code

if TYPE_CHECKING:
    import pandas as pd
    from filelock import FileLock


class Run:
    """An open run directory; get one from :meth:`open` and use it as a context manager.

    Attributes:
        directory: absolute path of the run.
        done: True if the run is finished: its numbers stand, and there is nothing to do.
        resumed: number of resumptions after a kill or a failure.
        manifest: the content of ``manifest.json``.
        trackers: what else receives the curves and the final numbers; none until `track`.
        log: the logger of the run; all loggers of the package reach ``log.txt`` while the run is entered.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], *, done: bool, lock: "FileLock") -> None:
        self.directory = directory
        self.manifest = manifest
        self.done = done
        self.log = logging.getLogger("robustcli.runs.run")
        self.trackers = Trackers()
        self._lock = lock
        self._exit = ExitStack()
        metrics = directory / "metrics.json"
        self._metrics: dict[str, Any] = files.read_json(metrics) if metrics.exists() else {}

    def __repr__(self) -> str:
        return f"Run(directory={str(self.directory)!r}, done={self.done}, resumed={self.resumed})"

    @classmethod
    def open(cls, command: str, config: Mapping[Any, Any], directory: Path | str, overrides: Sequence[str]) -> Self:
        """Claim ``directory`` for a run of ``command``: a new one, or one that was killed or failed.

        A run of another config that failed without results is overwritten.

        Raises:
            UserError: another live process holds the directory, or it holds a run of another config or command, or
                something that is no run; or it cannot be made.
        """
        place = Path(directory).absolute()
        try:
            check_ours(place)
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the directory of the run cannot be made or read: {error.filename} ({error.strerror}); name another "
                "with hydra.run.dir"
            ) from error
        lock = locks.take(
            place / ".lock",
            busy=lambda holder: (
                f"{place} is being worked on by {holder}: wait until it ends, or begin another run without `resume`"
            ),
        )
        try:
            files.remove_temporaries(place)
            content = plain(config)
            if not (place / "config.yaml").exists() or not check_same(place, command, content):
                manifest = begin_run(place, command, content, overrides)
                return cls(place, manifest, done=False, lock=lock)
            manifest = files.read_json(place / "manifest.json")
            if (place / "DONE").exists():
                _remove_parts(place)
                lock.release()
                return cls(place, manifest, done=True, lock=lock)
            resume_run(place, manifest)
            return cls(place, manifest, done=False, lock=lock)
        except BaseException:
            lock.release()
            raise

    def track(self, asked: Any, config: Mapping[str, Any]) -> None:
        """Open the trackers of ``tracker=...``; a resumed run goes on in those of its first session.

        Raises:
            UserError: see `tracker_names`.
        """
        names = tracker_names(asked)
        if names:
            self.trackers, ids = open_trackers(names, self.directory, config, self.manifest.get("trackers", {}))
            self.note(trackers=ids)

    @property
    def resumed(self) -> int:
        """Number of sessions after the first."""
        return len(self.manifest["sessions"]) - 1

    @property
    def objective(self) -> float:
        """The objective of a sweeper, as it stands in ``metrics.json``; NaN before it is known."""
        return float(self._metrics.get("objective", math.nan))

    def finish(self, objective: float) -> float:
        """Record and return the objective of a sweeper; ``DONE`` is written when the run is left.

        Raises:
            ValueError: it is not finite.
        """
        self._save_metrics(self._metrics | {"objective": _number("objective", objective)})
        return objective

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time (s) of the block to ``phases.<name>`` of the manifest, over all sessions of the run; that
        of a phase within it is of this one alone.
        """
        phases = self.manifest["phases"]
        begin, before = time.perf_counter(), sum(phases.values())
        try:
            yield
        finally:
            within = sum(phases.values()) - before
            phases[name] = phases.get(name, 0.0) + round(time.perf_counter() - begin - within, 3)
            self._save_manifest()

    def note(self, **entries: Any) -> None:
        """Add entries to the manifest; a mapping joins what stands under its key, anything else replaces it."""
        for key, value in entries.items():
            known, value = self.manifest.get(key), plain(value)
            self.manifest[key] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
        self._save_manifest()

    def note_inputs(self, **entries: Mapping[str, Any]) -> None:
        """`note` for fingerprints of what the run reads: data, weights, sources of words, files that the config names.

        Raises:
            UserError: a resumed run reads another of them than it began with; its parts would mix two runs.
        """
        for key, value in entries.items():
            known = self.manifest.get(key, {})
            changed = [name for name in value if name in known and known[name] != plain(value)[name]]
            if changed:
                raise UserError(
                    f"{key} {changed[0]} is not what {self.directory} began with (its fingerprint differs): "
                    "put the old file back, or begin another run without `resume`"
                )
        self.note(**entries)

    def write_metrics(self, metrics: Mapping[str, Any], table: "pd.DataFrame | None" = None) -> None:
        """Write ``metrics.json`` (nested mappings become keys with slashes) and, from ``table``, ``metrics.csv``.

        Raises:
            ValueError: a metric is not a finite number, or the table holds an infinite one.
        """
        self._save_metrics({key: _number(key, value) for key, value in flatten(metrics, "/").items()})
        if table is not None:
            if table.isin([float("inf"), float("-inf")]).to_numpy().any():
                raise ValueError("the table of metrics holds an infinite number")
            with files.atomic(self.directory / "metrics.csv") as path:
                table.to_csv(path, index=False)

    def write_records(self, records: "pd.DataFrame") -> None:
        """Write ``records.parquet``, one row a sample; the parts behind it are removed when the run is done."""
        with files.atomic(self.directory / "records.parquet") as path:
            records.to_parquet(path, index=False)

    def records_part(
        self,
        name: str,
        compute: "Callable[[], pd.DataFrame]",
        *,
        keep: "Callable[[pd.DataFrame], bool] | None" = None,
    ) -> "pd.DataFrame":
        """`records_part` in the directory of the run."""
        return records_part(self.directory, name, compute, keep=keep)

    def figure(self, name: str) -> Path:
        """Path of the picture ``name``, ``figures/<name>.png``; its folder is made.

        Raises:
            ValueError: ``name`` holds characters that a file name may not.
        """
        return self._place("figures", name, ".png")

    def checkpoint_path(self, name: str) -> Path:
        """Path of the checkpoint ``name``, ``checkpoints/<name>``, with ``.safetensors`` if it has no suffix.

        Raises:
            ValueError: ``name`` holds characters that a file name may not.
        """
        return self._place("checkpoints", name, ".safetensors")

    def write_report(self, markdown: str, html: str) -> None:
        """Write ``report.md`` and ``report.html``."""
        files.write_text(self.directory / "report.md", markdown)
        files.write_text(self.directory / "report.html", html)

    def discard(self) -> None:
        """Remove the directory of a run that failed in its first session, before its work; any other is left."""
        if self.resumed == 0 and set(self.manifest["phases"]) <= {"load"} and failed_at_once(self.directory):
            discard(self.directory)

    def __enter__(self) -> Self:
        if self.done:
            return self
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.enter_context(_logging_to(self.directory / "log.txt"))
            provenance.reset_peak_memory()
            again = f", resumed ({self.resumed})" if self.resumed else ""
            self.log.info("run %s%s", self.directory, again)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done:
            return
        with self._exit:
            self.trackers.close(*((self._numbers(), self._page()) if error is None else ({}, None)))
            if error is None:
                try:
                    self._complete()
                except Exception as late:
                    self._fail(late)
                    raise
            elif stop_code(error) is not None:
                with suppress(OSError):  # a full disk: the manifest keeps saying "running", as after a kill
                    self._close("interrupted")
                self.log.warning("interrupted; go on with: %s", self._how_to_resume())
            else:
                self._fail(error)

    def _numbers(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._metrics.items()}

    def _page(self) -> Path | None:
        page = self.directory / "report.html"
        return page if page.is_file() else None

    def _complete(self) -> None:
        self.manifest["outputs"] = output_hashes(self.directory)
        # DONE before the parts go: a run killed in between is done, or resumes from its parts.
        self._close("done")
        self._warn_of_changes()
        files.write_text(self.directory / "DONE", self.manifest["end"] + "\n")
        self.done = True
        _remove_parts(self.directory)
        self.log.info("done: %s", self.directory)

    def _fail(self, error: BaseException) -> None:
        """Record ``error``, as far as the disk has room for it and the directory is still there."""
        text = _failure(error)
        # The frames of a writer that failed hold its file open, and with it the blocks that a full disk has to give
        # for what is written here.
        for seen in behind(error):
            traceback.clear_frames(seen.__traceback__)
        with suppress(OSError):
            self._close("failed")
            files.write_text(self.directory / "FAILED", text)
        self.log.error("failed: %s", text.splitlines()[0])

    def _place(self, folder: str, name: str, suffix: str) -> Path:
        path = self.directory / folder / _file_name(name)
        path.parent.mkdir(exist_ok=True)
        return path if path.suffix else path.with_suffix(suffix)

    def _save_metrics(self, metrics: dict[str, Any]) -> None:
        self._metrics = metrics
        files.write_json(self.directory / "metrics.json", metrics)

    def _save_manifest(self) -> None:
        state = provenance.torch_state()
        if self.resumed == 0:  # engines choose their threads after the run is opened
            self.manifest["torch"] = state
        else:
            self.manifest["sessions"][-1]["changed"] |= differences({"torch": self.manifest["torch"]}, {"torch": state})
        self.manifest["peak_memory"] = provenance.peak_memory()
        if not (self.directory / "config.yaml").is_file():  # nothing is written where it would be a run without config
            raise FileNotFoundError(f"{self.directory} was removed while the run worked in it")
        files.write_json(self.directory / "manifest.json", self.manifest)

    def _close(self, status: str) -> None:
        end = now()
        self.manifest["sessions"][-1] |= {"end": end, "status": status}
        self.manifest |= {"end": end, "status": status}
        self._save_manifest()

    def _warn_of_changes(self) -> None:
        for key, (old, new) in self.manifest["sessions"][-1].get("changed", {}).items():
            self.log.warning("%s is %s, but was %s when the run began: its numbers may differ for it", key, new, old)

    def _how_to_resume(self) -> str:
        kept = [item for item in self.manifest["overrides"] if not item.startswith("resume=")]
        return shlex.join(["robustcli", self.manifest["command"], *kept, f"resume={self.directory}"])


def _failure(error: BaseException) -> str:
    if isinstance(error, UserError | SuspectClaim):
        return f"{error}\n"
    trace = "".join(traceback.format_exception(error))
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}\n\n{trace}"


def _number(key: str, value: Any) -> float | int | bool:
    value = value.item() if hasattr(value, "item") else value
    finite = isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
    if not finite:
        raise ValueError(f"metric {key} is {value!r}, but a metric is a finite number: leave out what has no value")
    return value  # type: ignore[no-any-return]


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", name):
        raise ValueError(f"{name!r} is no name of a file: use letters, digits and . _ + = -")
    return name


def _remove_parts(directory: Path) -> None:
    """Remove the parts of a finished run and the state of its training, and nothing else that lies beside them."""
    parts = directory / "parts"
    if (directory / "records.parquet").exists() and not parts.is_symlink():
        for path in [*parts.glob("*.parquet"), parts / "state.zip"]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or it holds what is not ours
            parts.rmdir()


class _LogFile(logging.StreamHandler[TextIO]):
    """Handler that drops what it cannot write: a full disk must not end a run, nor print tracebacks of logging."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    # On the root, so that the warnings of libraries are kept too; the level is raised for our own package only.
    stream = files.append_to(path)
    handler = _LogFile(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("robustcli")
    level = package.level
    package.setLevel(min(level or logging.INFO, logging.INFO))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        package.setLevel(level)
        handler.close()
        with suppress(OSError):
            stream.close()
