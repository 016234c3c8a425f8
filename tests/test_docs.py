"""What the documentation says to type is typed: commands are composed, pages and notebooks run at smoke size."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from robustcli.cli.commands import COMMANDS
from robustcli.cli.launch import one_sentence, written_out
from robustcli.cli.main import app
from robustcli.config.compose import compose
from robustcli.utils.errors import UserError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OF_ROOT = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]
OF_SITE = {path.name.lower(): path for path in OF_ROOT}  # which the site has beside its own pages
# Pages whose ```sh blocks are run in order, beside the files that they show; words that make a command small.
RUN = [
    "tutorial/demo.md",
    *(f"how-to/{name}.md" for name in ("own-model", "own-attack", "own-defence", "cost", "read-a-run")),
]
SMALL = ["evaluation.limit=8", "evaluation.resamples=10", "evaluation.eps_curve=[]", "diagnostics=off"]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PLACE = re.compile(r"\.\.\.|--config-dir|\bresume=")  # of a reader's own: composed where the page is run, or not at all


def commands(text: str) -> Iterator[str]:
    """Command lines of a page, continued lines joined, comments dropped."""
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if match := re.match(r" *(robustcli [a-z].*)", line):
            yield re.sub(r" {2,}#.*$", "", match[1]).strip()


def blocks(text: str, head: str) -> list[tuple[str, str]]:
    """Titles and contents of the fenced blocks whose first line begins with ``head``."""
    return re.findall(rf'^```{head}(?: title="([^"]+)")?\n(.*?)^```', text, flags=re.DOTALL | re.MULTILINE)


SHOWN = [
    (page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in dict.fromkeys(commands(page.read_text()))
]


@pytest.mark.parametrize(("page", "line"), [each for each in SHOWN if not PLACE.search(each[1])])
def test_a_command_in_the_docs_is_one(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, name, *words = _words(line)
    if name not in COMMANDS:
        found = get_command(app).commands[name]  # type: ignore[attr-defined]
        found.make_context(name, words)  # the arguments are read, nothing is called
        return
    monkeypatch.chdir(tmp_path)
    if {"--help", "--cfg"} & set(words):
        return
    if "hydra/launcher=submitit_slurm" in words and importlib.util.find_spec("submitit") is None:
        pytest.skip("the extra `cluster` is not installed")
    one = [_first(word) for word in words if word not in ("--multirun", "-m")]
    with one_sentence(name, one):
        written = written_out(name, one)
        compose(name, written, written, with_hydra=True)


def _words(line: str) -> list[str]:
    """The words of a command line as a shell makes them, braces expanded."""
    if "{" not in line:
        return shlex.split(line)
    said = subprocess.run(["bash", "-fc", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    return said.split("\0")[:-1]


def _first(word: str) -> str:
    """The first of the values that a sweep goes over."""
    key, _, value = word.partition("=")
    if value[:1] in ("[", "{", "'", '"') or "," not in value:
        return word
    return f"{key}={value.split(',')[0]}"


def test_every_command_stands_in_the_docs() -> None:
    shown = {line.split()[1] for _, line in SHOWN}
    assert get_command(app).commands.keys() <= shown  # type: ignore[attr-defined]


def test_a_command_with_a_mistake_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean"):
        test_a_command_in_the_docs_is_one("", "robustcli evaluate evaluation.limits=3", tmp_path, monkeypatch)
    with pytest.raises(Exception, match="No such option"):
        test_a_command_in_the_docs_is_one("", "robustcli report outputs --outt x", tmp_path, monkeypatch)


@pytest.mark.parametrize("page", RUN)
def test_a_page_does_what_it_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / page).read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scripts = []
    for kind in ("python", "yaml"):
        for title, content in blocks(text, kind):
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(content)
            scripts += [title] if kind == "python" and "import robustcli\n" in content else []
    lines = [line for _, block in blocks(text, "sh") for line in commands(block)]
    assert lines
    for line in lines:
        _, name, *words = _words(line)
        done = CliRunner().invoke(app, [name, *words, *(SMALL if name in COMMANDS else [])])
        assert done.exit_code == 0, (line, done.output)
    for script in scripts:
        runpy.run_path(str(tmp_path / script))
    for module in [name for name, each in sys.modules.items() if str(tmp_path) in str(getattr(each, "__file__", ""))]:
        del sys.modules[module]  # modules of the same name are written by others


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4 and not any(cell["outputs"] for cell in code), "outputs are left out of the repository"
    script = "\n".join("".join(cell["source"]) for cell in code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_links_between_pages_lead_somewhere() -> None:
    generated = {f"{name}.md" for name in ("contributing", "changelog", "security")}
    generated |= {"reference/commands.md", "reference/configuration.md"}
    for page in PAGES[1:]:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|png))(?:#[^)]*)?\)", page.read_text()):
            place = (page.parent / target).resolve()
            assert place.is_file() or place.relative_to(DOCS).as_posix() in generated, (page.name, target)


@pytest.mark.parametrize("page", [*OF_ROOT, *PAGES[1:]], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_and_those_outside_have_a_form(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s<>\"]*)?", target), target
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        made = OF_SITE.get(place.name) if not place.exists() else None
        if made is None and not place.exists():
            assert place.is_relative_to(DOCS / "reference"), f"{target} leads nowhere"  # which the site generates
            continue
        assert not anchor or anchor in headings((made or place).read_text()), f"{target} has no such heading"


def headings(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them."""
    found = re.findall(
        r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in found}


def test_the_site_has_every_page_every_command_and_every_choice() -> None:
    hooks: Any = runpy.run_path(str(DOCS / "hooks.py"))
    made = dict(hooks["pages"]())
    assert all(f"## robustcli {name}\n" in made["reference/commands.md"] for name in COMMANDS)
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert f"## {path.stem}\n" in made[f"reference/config/{path.parent.name}.md"]
    listed = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    known = set(re.findall(r"'([^']+\.md)'", str(listed)))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert written <= known and known <= written | set(made)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs")
def test_links_out_of_the_docs_become_those_of_the_site() -> None:
    hooks: Any = runpy.run_path(str(DOCS / "hooks.py"))

    class Page:
        class file:
            src_uri = "how-to/own-model.md"

    said = hooks["on_page_markdown"]("[a](../CONTRIBUTING.md#x) [b](../conf/a.yaml) [c](docs/data.md)", Page)
    assert said == "[a](../contributing.md#x) b [c](../data.md)"
