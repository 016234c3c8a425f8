"""``resume=DIR`` and ``retry=failed``: expansion into the overrides that a run, or a sweep, was started with."""

from collections.abc import Sequence
from pathlib import Path

from robustcli.cli.recorded import TRUST, read_overrides, refuse_untrusted
from robustcli.config.overrides import key, quoted, value
from robustcli.utils.errors import UserError


def is_trusted(argv: Sequence[str]) -> bool:
    """True where ``argv`` may name code of others: the user typed all of it, or trusts the directory to resume."""
    return TRUST in argv or _asked(argv) is None


def retries(argv: Sequence[str]) -> bool:
    """True where ``retry=failed`` asks for the failed jobs of a sweep again.

    Raises:
        UserError: it has another value.
    """
    asked = _value("retry", argv)
    if asked not in (None, "failed"):
        raise UserError(f"retry is {asked!r}, but must be failed: the failed jobs of a sweep are done again.")
    return asked is not None


def expand(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``resume=DIR`` replaced by the overrides of DIR, then those of ``argv``, and DIR as run directory.

    Raises:
        UserError: DIR does not exist, holds neither a run nor a sweep, cannot be read, or reaches for code that is not
            of robustcli without ``--trust``; or ``retry`` stands where there is no sweep, see also `retries`.
    """
    asked, retry = _asked(argv), retries(argv)
    fresh = [word for word in argv if key(word) not in ("resume", "retry")]
    if asked is None:
        if retry and not {"-m", "--multirun"} & set(argv):
            raise UserError("retry=failed is for the jobs of a sweep: name it with resume=DIR.")
        return fresh if retry else list(argv)
    directory = Path(asked).expanduser().absolute()
    sweep = directory / "multirun.yaml"
    if sweep.is_file():
        recorded = [word for part in ("task", "hydra") for word in read_overrides(sweep, "hydra", "overrides", part)]
        place = f"hydra.sweep.dir={quoted(directory)}"  # hydra.mode=MULTIRUN is among the recorded
    elif (directory / "overrides.yaml").is_file():
        recorded, place = read_overrides(directory / "overrides.yaml"), f"hydra.run.dir={quoted(directory)}"
        if retry:
            raise UserError(f"{asked} is no sweep but a run, which goes on, or is done again, by resume={asked} alone.")
    else:
        flaw = "holds neither a run nor a sweep" if directory.is_dir() else "does not exist"
        raise UserError(f"resume={asked}: the directory {flaw}; give one of those under outputs/, or leave resume out")
    if TRUST not in argv:
        refuse_untrusted(directory, recorded)
    # Of two values for a key Hydra takes the later, but `+group@node=choice`, given again, would be one too many.
    given = {word for word in recorded if word.startswith("+")}
    return [*recorded, *(word for word in fresh if word not in given), place]


def _asked(argv: Sequence[str]) -> str | None:
    """The directory of the last ``resume=DIR`` in ``argv``, if it names one."""
    return _value("resume", argv)


def _value(name: str, argv: Sequence[str]) -> str | None:
    """The last value of ``name`` in ``argv``; None: there is none, or it is empty or null."""
    asked = [value(word) for word in argv if key(word) == name]
    return asked[-1] if asked and asked[-1] not in ("", "null") else None
