"""``resume=DIR``: expansion into the overrides that a run, or a sweep, was started with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcli.config.overrides import key, quoted, value
from robustcli.utils.errors import UserError


def expand(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``resume=DIR`` replaced by the overrides of DIR, then those of ``argv``, and DIR as run directory.

    Raises:
        UserError: DIR does not exist, holds neither a run nor a sweep, or its YAML cannot be read.
    """
    asked = [value(word) for word in argv if key(word) == "resume"]
    fresh = [word for word in argv if key(word) != "resume"]
    if not asked or asked[-1] in ("", "null"):
        return list(argv)
    directory = Path(asked[-1]).expanduser().absolute()
    if (directory / "multirun.yaml").is_file():
        overrides = _read(directory / "multirun.yaml")["hydra"]["overrides"]
        recorded = [*overrides["task"], *overrides["hydra"]]  # hydra.mode=MULTIRUN among them
        place = f"hydra.sweep.dir={quoted(directory)}"
    elif (directory / "overrides.yaml").is_file():
        recorded, place = _read(directory / "overrides.yaml"), f"hydra.run.dir={quoted(directory)}"
    else:
        flaw = "holds neither a run nor a sweep" if directory.is_dir() else "does not exist"
        raise UserError(
            f"resume={asked[-1]}: the directory {flaw}; give one of those under outputs/, or leave resume out"
        )
    return [*recorded, *fresh, place]  # of two values for a key Hydra takes the later


def _read(file: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} cannot be read as YAML: begin a run of its own, without resume") from error
