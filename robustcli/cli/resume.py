"""``resume=DIR``: expansion into the overrides that a run, or a sweep, was started with."""

from collections.abc import Sequence
from pathlib import Path

from robustcli.cli.recorded import TRUST, read_overrides, refuse_untrusted
from robustcli.config.overrides import key, quoted, value
from robustcli.utils.errors import UserError


def is_trusted(argv: Sequence[str]) -> bool:
    """True where ``argv`` may name code of others: the user typed all of it, or trusts the directory to resume."""
    return TRUST in argv or _asked(argv) is None


def expand(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``resume=DIR`` replaced by the overrides of DIR, then those of ``argv``, and DIR as run directory.

    Raises:
        UserError: DIR does not exist, holds neither a run nor a sweep, cannot be read, or reaches for code that is not
            of robustcli without ``--trust``.
    """
    asked = _asked(argv)
    if asked is None:
        return list(argv)
    fresh = [word for word in argv if key(word) != "resume"]
    directory = Path(asked).expanduser().absolute()
    sweep = directory / "multirun.yaml"
    if sweep.is_file():
        recorded = [word for part in ("task", "hydra") for word in read_overrides(sweep, "hydra", "overrides", part)]
        place = f"hydra.sweep.dir={quoted(directory)}"  # hydra.mode=MULTIRUN is among the recorded
    elif (directory / "overrides.yaml").is_file():
        recorded, place = read_overrides(directory / "overrides.yaml"), f"hydra.run.dir={quoted(directory)}"
    else:
        flaw = "holds neither a run nor a sweep" if directory.is_dir() else "does not exist"
        raise UserError(f"resume={asked}: the directory {flaw}; give one of those under outputs/, or leave resume out")
    if TRUST not in argv:
        refuse_untrusted(directory, recorded)
    return [*recorded, *fresh, place]  # of two values for a key Hydra takes the later


def _asked(argv: Sequence[str]) -> str | None:
    """The directory of the last ``resume=DIR`` in ``argv``, if it names one."""
    asked = [value(word) for word in argv if key(word) == "resume"]
    return asked[-1] if asked and asked[-1] not in ("", "null") else None
