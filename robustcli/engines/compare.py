"""`robustcli compare`: two models on the same queries, with paired differences."""

from pathlib import Path

from robustcli.report.compare import compare
from robustcli.report.tables import print_grid


def print_comparison(first: str, second: str) -> None:
    """Print how the model of run ``second`` differs from that of ``first``, query by query.

    Args:
        first, second: directory of a run, with ``:MODEL`` behind it where its table has several models.

    Raises:
        UserError: see `robustcli.report.compare.compare`.
    """
    print_grid(compare(*_place(first), *_place(second)))


def _place(text: str) -> tuple[Path, str | None]:
    """Directory and model of ``outputs/run:after``; a directory whose own name has a colon is one."""
    head, colon, model = text.rpartition(":")
    return (Path(head), model) if colon and not Path(text).is_dir() else (Path(text), None)
