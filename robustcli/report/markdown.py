"""``report.md``: results, tables, figures, threat model and provenance of a run on one page."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.report.tables import Grid
from robustcli.runs.manifest import INPUTS

if TYPE_CHECKING:
    from jinja2 import Environment, Template

# Characters that Markdown would read as markup: an emphasis, a table's border, a formula, code, the target of a link.
_SPECIAL = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(")


@dataclass(frozen=True)
class Picture:
    """A picture with its caption; ``numbers`` are those that it draws, or its texts, under the word ``fold``."""

    caption: str
    path: Path
    numbers: Grid | None = None
    fold: str = "The numbers"


@dataclass(frozen=True)
class Report:
    """Content of a report; summary, threat and caveats are Markdown, and all else is shown as it stands.

    Attributes:
        title: one line.
        answer: what came out, a sentence a model; plain text.
        threat: the threat model in sentences; see `robustcli.report.threat`.
        summary: the main result in a sentence or two; may be empty.
        tables: in reading order.
        figures: in reading order.
        inputs: what was done to the data before a model saw them, a sentence each.
        caveats: limits of the numbers, a sentence each.
    """

    title: str
    threat: Sequence[str]
    answer: Sequence[str] = ()
    summary: str = ""
    tables: Sequence[Grid] = ()
    figures: Sequence[Picture] = ()
    inputs: Sequence[str] = ()
    caveats: Sequence[str] = ()


def render_report(report: Report, manifest: Mapping[str, Any], directory: Path) -> str:
    """The report as Markdown that stands in ``directory``: pictures are named relative to it.

    Args:
        report: the content.
        manifest: of the run; gives the command and the provenance.
        directory: where the text will stand.
    """
    return _template().render(
        report=report,
        figures=[(picture.caption, os.path.relpath(picture.path, directory)) for picture in report.figures],
        command=command_line(manifest),
        provenance=provenance(manifest),
        rerun=rerun_line(directory),
    )


def render_table(grid: Grid) -> str:
    """A table as Markdown, with its title above and its note below."""
    table: Any = _environment().get_template("table.md.j2").module
    return str(table.table(grid)).lstrip("\n")


@cache
def package_file(name: str) -> str:
    """The text of a file beside the templates."""
    return (files("robustcli.report") / "templates" / name).read_text(encoding="utf-8")


def literal(text: str, line_break: str = " ") -> str:
    """``text`` so that Markdown shows it as it stands; what a user named may hold ``|``, ``*`` or ``<``.

    A ``_`` within a word and a lone bracket mean nothing to Markdown and stay, for those who read the file as it is.
    """
    safe = re.sub(r"&(?=#?\w+;)", "&amp;", _SPECIAL.sub(r"\\\g<0>", text)).replace("<", "&lt;")
    return line_break.join(safe.splitlines())


def command_line(manifest: Mapping[str, Any]) -> str:
    """The command line of this run; for a job of a sweep that of the job alone."""
    return shlex.join(["robustcli", manifest["command"], *manifest["overrides"]])


def rerun_line(directory: Path) -> str:
    """The command line that rebuilds the run of ``directory``."""
    return shlex.join(["robustcli", "rerun", str(directory)])


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The lines of the manifest that a reader needs to trust or to rebuild a number."""
    code, machine, torch = manifest["code"], manifest["machine"], manifest["torch"]
    commit = "not from a git tree" if code["commit"] is None else code["commit"][:12]
    state = ", with changes that are not committed" if code["dirty"] else ""
    lines = {
        "code": f"robustcli {code['version']}, {commit}{state}, sources sha256 {code['sha256'][:12]}",
        "packages": ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['platform']}",
        "torch": f"{manifest['device']}, {torch['threads']} threads, {torch['cpu_capability']}",
        "seeds": ", ".join(f"{key} {value}" for key, value in manifest["seeds"].items()) or "none",
        "started": str(manifest["start"]),
        "phases": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in manifest["phases"].items()) or "none",
    }
    if torch.get("cuda_device"):
        lines["torch"] += f", {torch['cuda_device']} (CUDA {torch['cuda']})"
    resumed = len(manifest["sessions"]) - 1
    lines |= {"resumed": f"{resumed} times"} if resumed else {}
    hashes = {key: manifest[key] for key in INPUTS if manifest.get(key)}
    return lines | {key.replace("_", " "): _hashes(value) for key, value in hashes.items()}


def _template() -> "Template":
    return _environment().get_template("report.md.j2")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustcli.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "literal": literal,
        "cell": partial(literal, line_break="<br>"),
        "code": _code,
        "fenced": lambda text: _code(text, "\n", least=3),
    }
    return environment


def _code(text: str, padding: str = "", least: int = 1) -> str:
    """Code between more backticks than it holds in a row; text that holds any is padded, as Markdown wants it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks, around = "`" * max(least, longest + 1), padding or " " * bool(longest)
    return f"{ticks}{around}{text}{around}{ticks}"


def _hashes(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_hashes(each)}" for key, each in value.items())
    return str(value)[:16]
