"""Manifest and state of a run directory: creation, resumption, comparison of configs, and the marker of a refusal."""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from robustcli.runs import provenance
from robustcli.utils import files
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import differences, flatten

# They change no number: `resume` names the directory that the comparison is about, `processes` and `trainer.devices`
# who works in it, `retry` which jobs of a sweep.
NOT_COMPARED = ("resume", "retry", "processes", "trainer.devices", "trainer.strategy")
INPUTS = ("data_fingerprint", "data", "weights", "candidates", "files")  # fingerprints of what a run read
_SHAPE = {"command", "status", "phases", "sessions", "torch", "code", "packages", "machine"}  # keys of a manifest
_ACCOUNT = {"config.yaml", "overrides.yaml", "manifest.json", "log.txt", "FAILED", ".lock"}


def check_ours(directory: Path) -> None:
    """Check that a run may work in ``directory``: it is absent or empty, holds a run, or what one began with.

    Raises:
        UserError: it is no directory, holds anything else, a link or a damaged run; nothing was written.
    """
    if not directory.is_dir():
        if os.path.lexists(directory):
            raise UserError(f"{directory} is no directory: name another with hydra.run.dir")
        return
    held = [path for path in directory.iterdir() if not files.is_temporary(path)]
    # The lock looks for a link itself, and at the file that it opened, in whose place none can be put then.
    if link := next((path for path in held if path.is_symlink() and path.name != ".lock"), None):
        raise UserError(f"{link} is a link, which a run does not write through: remove it, or name another directory")
    # What Hydra writes before the run, where it is asked to: hydra.output_subdir, hydra/job_logging.
    names = {path.name for path in held if path.name != ".hydra" and path.suffix != ".log"}
    if names <= {".lock"} or ("overrides.yaml" in names and names <= _ACCOUNT - {"config.yaml"}):
        return
    if not {"config.yaml", "manifest.json"} <= names:
        other = min(names - _ACCOUNT, default=min(names))
        raise UserError(
            f"{directory} is not empty and holds no run, or a damaged one (such as {other}): name another directory "
            "with hydra.run.dir"
        )
    try:
        whole = files.read_json(directory / "manifest.json").keys() >= _SHAPE
        whole &= isinstance(files.read_yaml(directory / "config.yaml"), dict)
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        whole = False
    if not whole:
        raise UserError(f"{directory} holds a damaged run (manifest.json or config.yaml): name another directory")


def new_directory(parent: Path) -> Path:
    """Make and return ``parent/<date>/<time>-<short id>``: never one that another has made."""
    while True:
        time = datetime.now()
        directory = parent / f"{time:%Y-%m-%d}" / f"{time:%H-%M-%S}-{secrets.token_hex(3)}"
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir()
        except OSError as error:
            if isinstance(error, FileExistsError) and directory.is_dir():
                continue
            raise UserError(f"{error.filename} cannot be made ({error.strerror}): work in another directory") from error
        return directory


def begin_run(directory: Path, command: str, content: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Write the config, the overrides and the manifest of a new run; returns the manifest.

    Args:
        command: as typed, such as ``train-mat``.
        content: the composed config as plain data.
        overrides: of the command line, as a rerun repeats them.
    """
    manifest = {
        "command": command,
        "overrides": [str(item) for item in overrides],
        "command_line": list(sys.argv),
        "working_directory": str(Path.cwd()),
        "status": "running",
        "start": now(),
        "end": None,
        **_environment(),
        "device": _device(content),
        "seeds": {key: value for key, value in flatten(content).items() if key.rpartition(".")[2] == "seed"},
        "phases": {},
        "peak_memory": {},
        "sessions": [_session()],
    }
    (directory / "FAILED").unlink(missing_ok=True)
    files.write_yaml(directory / "overrides.yaml", manifest["overrides"])
    files.write_json(directory / "manifest.json", manifest)
    # Last, since config.yaml is what makes the directory a run: a kill before leaves one that can be begun again.
    files.write_yaml(directory / "config.yaml", content)
    return manifest


def failed_at_once(directory: Path) -> bool:
    """True if the directory holds a failed run without results: nothing but the files of `_ACCOUNT`."""
    names = {path.name for path in directory.iterdir()}
    return "FAILED" in names and names <= _ACCOUNT


def discard(directory: Path) -> None:
    """Remove the files of a run that failed at once, see `failed_at_once`, and the directory with them."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def record_refusal(directory: Path, overrides: Sequence[str], sentence: str) -> None:
    """Write ``overrides.yaml`` and ``FAILED`` for a job that stopped before its run began, for its sweep's table.

    Nothing is written to a directory that holds a run.
    """
    if not (directory / "config.yaml").exists():
        files.write_yaml(directory / "overrides.yaml", [str(item) for item in overrides])
        files.write_text(directory / "FAILED", f"{sentence}\n")


def resume_run(directory: Path, manifest: dict[str, Any]) -> None:
    """Begin another session of a run that was killed or failed: updates ``manifest`` in place and removes ``FAILED``.

    The session records the changes of code, packages and machine since the run began.
    """
    (directory / "FAILED").unlink(missing_ok=True)
    if manifest["status"] == "running":
        manifest["sessions"][-1]["status"] = "killed"  # it had no time to write so itself
    known = {key: manifest[key] for key in ("code", "packages", "machine")}
    current = {key: value for key, value in _environment().items() if key in known}
    manifest["sessions"].append(_session() | {"changed": differences(known, current)})
    manifest |= {"status": "running", "end": None}
    files.write_json(directory / "manifest.json", manifest)


def _session() -> dict[str, Any]:
    return {"start": now(), "end": None, "status": "running", "command_line": list(sys.argv)}


def _environment() -> dict[str, Any]:
    return {
        "code": provenance.code(),
        "packages": provenance.packages(),
        "machine": provenance.machine(),
        "torch": provenance.torch_state(),
    }


def _device(content: Any) -> str | None:
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    return trainer.get("device") if isinstance(trainer, Mapping) else None


def check_same(directory: Path, command: str, content: Any) -> bool:
    """True if the directory holds a run of this command and config; False if another run failed there without results.

    Raises:
        UserError: the directory holds results of another command or config; the message names the differences.
    """
    known = files.read_json(directory / "manifest.json")["command"]
    changed = differences(files.read_yaml(directory / "config.yaml"), content, NOT_COMPARED)
    if (known != command or changed) and failed_at_once(directory):
        return False
    if known != command:
        raise UserError(f"{directory} holds a run of `{known}`, not of `{command}`: use that, or another directory")
    if changed:
        shown = [f"{key} was {old} and is {new}" for key, (old, new) in list(changed.items())[:5]]
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{directory} holds a run of another config ({'; '.join(shown)}{more}): "
            "give the values it began with, or another directory"
        )
    return True


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
