"""`robustcli report`: one table over runs and sweeps, printed and written as Markdown, LaTeX and CSV."""

from collections.abc import Sequence
from pathlib import Path

from robustcli.report.join import join
from robustcli.report.joined import frame_of, grid_of, markdown_of, tex_of
from robustcli.report.runs import find_runs
from robustcli.report.tables import print_grid
from robustcli.utils import files
from robustcli.utils.errors import UserError, reason_of


def report(
    directories: Sequence[Path], *, measure: str = "recall_at_1", published: Path | None = None, out: Path | None = None
) -> None:
    """Print the table of the runs in ``directories`` or below them.

    Args:
        out: folder for ``table.md``, ``table.tex`` and ``table.csv``; None: nothing is written.

    Raises:
        UserError: no runs, damaged ones, or a folder that cannot be written to.
    """
    joined = join(find_runs(directories), measure=measure, published=published)
    print_grid(grid_of(joined))
    if out is None:
        return
    texts = {"table.md": markdown_of(joined), "table.tex": tex_of(joined)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_text(out / name, text)
        with files.atomic(out / "table.csv") as path:
            frame_of(joined).to_csv(path, index=False)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {reason_of(error)}.") from error
    print(f"written: {', '.join(str(out / name) for name in [*texts, 'table.csv'])}")
