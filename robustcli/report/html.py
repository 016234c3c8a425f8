"""``report.html``: the report of a run as one file that needs nothing else, to look at, to send and to keep.

It holds its pictures, reads without a script (which only sorts tables), and its policy forbids it to load anything.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.diagnostics import OK, SUSPECT
from robustcli.report.markdown import Report, command_line, provenance, render_report, rerun_line
from robustcli.report.tables import NUMBER_STARTS, Grid
from robustcli.runs.run import Run

if TYPE_CHECKING:
    from jinja2 import Environment
    from markdown_it import MarkdownIt

_KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def publish(run: Run, report: Report) -> None:
    """Write ``report.md`` and ``report.html`` of ``run``."""
    run.write_report(
        render_report(report, run.manifest, run.directory), render_html(report, run.manifest, run.directory)
    )


def render_html(report: Report, manifest: Mapping[str, Any], directory: Path) -> str:
    """The report as a page; what a user named stands in it as text.

    Args:
        manifest: of the run; gives the command and the provenance.
        directory: of the run, for the command that rebuilds it.
    """
    return render(
        "report.html.j2",
        report.title,
        report=report,
        figures=[(picture, _data(picture.path)) for picture in report.figures],
        command=command_line(manifest),
        provenance=provenance(manifest),
        rerun=rerun_line(directory),
        sections=[
            ("Threat model", [_markdown(each) for each in report.threat]),
            ("Inputs", list(report.inputs)),
            ("Caveats", [_markdown(each) for each in report.caveats]),
        ],
        summary=[_markdown(each) for each in report.summary.split("\n\n") if each],
    )


def render_tables(title: str, grids: Sequence[Grid], sentences: Sequence[str] = ()) -> str:
    """Tables as a page like that of a run, with warnings above them."""
    return render("tables.html.j2", title, grids=grids, sentences=sentences)


def render(template: str, title: str, **parts: Any) -> str:
    """A page of ``templates/``: one file, whose policy lets it load nothing; parts that are no Markup are text."""
    from markupsafe import Markup

    from robustcli.report.markdown import package_file

    script = package_file("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup(package_file("report.css"))
    page = _environment().get_template(template)
    return page.render(title=title, style=style, script=Markup(script), digest=digest, **parts)


def _data(path: Path) -> str:
    """The picture within an address; of a curve the drawing, which stays sharp, where it stands beside the pixels."""
    drawing = path.with_suffix(".svg")
    shown = drawing if drawing.is_file() else path
    return f"data:{_KINDS[shown.suffix]};base64,{base64.b64encode(shown.read_bytes()).decode()}"


def _markdown(sentence: str) -> Any:
    """A sentence of Markdown as HTML; tags in it stay text."""
    from markupsafe import Markup

    return Markup(_parser().renderInline(sentence))


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False})


def _lines(cell: str) -> list[str]:
    return cell.split("\n") or [""]


def _verdict(cell: str) -> str:
    """``suspect`` or ``ok`` for a cell with a line that says so; else nothing."""
    words = {re.sub(r" ?(so far)? ?\(.*\)$", "", line) for line in cell.split("\n")}
    return SUSPECT if SUSPECT in words else OK if OK in words else ""


def _numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    return index > 0 and all(row[index][:1] in NUMBER_STARTS for row in rows)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustcli.report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"lines": _lines, "verdict": _verdict}
    environment.tests |= {"numeric": _numeric}
    return environment
