"""`robustcli report`: one table over runs and sweeps, printed and written as Markdown, LaTeX and CSV."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from robustcli.report.html import render_tables
from robustcli.report.join import join
from robustcli.report.joined import frame_of, grid_of, markdown_of, tex_of
from robustcli.report.purification import draw_bounds, join_purified
from robustcli.report.runs import find_runs
from robustcli.report.sweep import collect, jobs_grid
from robustcli.report.tables import print_grid
from robustcli.runs.sweeps import is_sweep
from robustcli.utils import files
from robustcli.utils.errors import UserError, reason_of

FORMS = ("runs", "purification")


def report(
    directories: Sequence[Path],
    *,
    measure: str = "recall_at_1",
    form: str = "runs",
    published: Path | None = None,
    out: Path | None = None,
    show: bool = False,
) -> None:
    """Print the table of the runs in ``directories`` or below them; of a sweep also what became of each of its jobs.

    Args:
        form: ``runs``, a row a model and a column an attack; or ``purification``, the table of its papers: robust
            accuracy at every bound, counted over all images and over those that were right at first.
        out: folder for ``table.md``, ``table.tex``, ``table.html`` and ``table.csv``, and of ``purification`` the
            picture ``bounds.png``; None: nothing is written.
        show: open the table in a browser, or the ``report.html`` of the run or sweep that is named alone.

    Raises:
        UserError: an unknown form, no runs, damaged ones, or a folder that cannot be written to.
    """
    if form not in FORMS:
        raise UserError(f"--form is {form!r}: choose one of {', '.join(FORMS)}.")
    if form == "purification" and published is not None:
        raise UserError("--published has no place in --form purification: leave one of both out.")
    sweeps = [directory for directory in directories if is_sweep(directory)]
    for sweep in sweeps:
        print_grid(jobs_grid(collect(sweep)))
    if sweeps and not any(next(directory.rglob("DONE"), None) for directory in directories):
        return  # the states of the jobs are all that there is yet
    if form == "purification":
        joined = join_purified(find_runs(directories), measure=measure)
    else:
        joined = join(find_runs(directories), measure=measure, published=published)
    print_grid(grid_of(joined))
    page = render_tables("Joined table", [grid_of(joined)])
    own = directories[0] / "report.html"
    if show:
        if len(directories) > 1 or not own.is_file():
            own = Path(mkdtemp(prefix="robustcli-")) / "table.html"
            files.write_text(own, page)
        _open(own)
    if out is None:
        return
    texts = {"table.md": markdown_of(joined), "table.tex": tex_of(joined), "table.html": page}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_text(out / name, text)
        with files.atomic(out / "table.csv") as path:
            frame_of(joined).to_csv(path, index=False)
        if form == "purification":
            draw_bounds(joined, out / "bounds.png")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {reason_of(error)}.") from error
    pictures = ["bounds.png", "bounds.svg"] if form == "purification" else []
    print(f"written: {', '.join(str(out / name) for name in [*texts, 'table.csv', *pictures])}")


def _open(page: Path) -> None:
    address = page.absolute().as_uri()
    print(f"open: {address}" + ("" if webbrowser.open(address) else " (no browser was found: open it by hand)"))
