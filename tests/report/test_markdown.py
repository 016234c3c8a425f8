"""The report of a run, and that a reader of Markdown sees in it what the user wrote."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustcli.report.markdown import Picture, Report, command_line, provenance, render_report
from robustcli.report.tables import Grid
from robustcli.runs.run import Run

ROOT = Path(__file__).parents[2]
GRID = Grid("Recall@1", ["model", "SGA"], [["after mat", "46.6 / 47.0\n±2.0 / ±2.1"]], "a note")
MANIFEST: dict[str, Any] = {
    "command": "attack",
    "overrides": ["dataset.root=my photos", "seed=3"],
    "code": {"version": "1", "commit": None, "dirty": None, "sha256": "b" * 64},
    "packages": {"torch": "2"},
    "machine": {"cpu": "Xeon(R) | 2", "cores": 2, "memory_gib": 8, "platform": "Linux"},
    "torch": {"threads": 1, "cpu_capability": "AVX2"},
    "device": "cpu",
    "seeds": {},
    "start": "now",
    "phases": {},
    "sessions": [{}],
}
GOLDEN = """\
# Learned alphas

Better.

```
robustcli attack 'dataset.root=my photos' seed=3
```

**Recall@1**

| model | SGA |
| :-- | --: |
| after mat | 46.6 / 47.0<br>±2.0 / ±2.1 |

a note

**Front**

| trial | origin |
| :-- | --: |
| 1 | linear |

![Recall over eps](figures/eps.png)

*Recall over eps*

## Threat model

- Images are not changed.

## Caveats

- *worst*: each query.
- One seed.

## Provenance

| | |
| :-- | :-- |
| code | robustcli 1, not from a git tree, sources sha256 bbbbbbbbbbbb |
| packages | torch 2 |
| machine | Xeon(R) \\| 2, 2 cores, 8 GiB, Linux |
| torch | cpu, 1 threads, AVX2 |
| seeds | none |
| started | now |
| phases | none |

Rebuild and compare: `robustcli rerun /runs/a`
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.open("train-mat", {"seed": 3, "trainer": {"device": "cpu"}}, tmp_path / "a", ["seed=3"]) as run:
        run.note(data_fingerprint={"train": "f" * 64}, weights={"start": "0123456789abcdef0123"})
        with run.phase("train"):
            pass
    return run


def test_the_report_is_golden() -> None:
    report = Report(
        title="Learned alphas",
        summary="Better.",
        threat=["Images are not changed."],
        tables=[GRID, Grid("Front", ["trial", "origin"], [["1", "linear"]])],
        figures=[Picture("Recall over eps", Path("/runs/a/figures/eps.png"))],
        caveats=["*worst*: each query.", "One seed."],
    )
    assert render_report(report, MANIFEST, Path("/runs/a")) == GOLDEN


def test_the_report_of_a_run_names_its_inputs_and_how_to_rebuild_it(run: Run) -> None:
    text = render_report(Report(title="MAT", threat=[]), run.manifest, run.directory)
    assert "| seeds | seed 3 |" in text and "train ffffffffffffffff" in text and "start 0123456789abcdef" in text
    assert f"robustcli rerun {run.directory}" in text
    assert "Threat model" not in text and "Caveats" not in text


def shown(token: Any) -> str:
    """What a reader sees of a line of text, ``\\n`` for a break."""
    assert {part.type for part in token.children} <= {"text", "html_inline", "em_open", "em_close"}
    return "".join("\n" if part.content == "<br>" else part.content for part in token.children)


@example(("~~a~~", "*a* _b_"))
@example(("[a](b)", "<b> &lt;"))
@example(("a|b", r"\| \* `a`"))
@given(st.tuples(*2 * [st.text("ab1 _*`|\\<>[]()!~&;#$-+\n").map(str.strip)]))
def test_a_cell_shows_what_the_user_wrote(words: tuple[str, str]) -> None:
    text = render_report(Report(title="t", threat=[], tables=[Grid("t", ["", ""], [words])]), MANIFEST, Path("/runs/a"))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    first, last = ([token.type for token in tokens].index(name) for name in ("tbody_open", "tbody_close"))
    seen = [shown(token) for token in tokens[first:last] if token.type == "inline"]
    assert [[line.strip() for line in cell.split("\n")] for cell in seen] == [
        [line.strip() for line in word.split("\n")] for word in words
    ]


@pytest.mark.parametrize("name", ["a|b", "*a*", "<b>a</b>", "[a](http://b)", "`a`", "_a_", "&lt;", "] ![", "a\n# b"])
def test_titles_and_captions_show_what_the_user_wrote(name: str) -> None:
    report = Report(title=name, threat=[], figures=[Picture(name, Path("/runs/a/figures/a b.png"))])
    tokens = MarkdownIt("commonmark").parse(render_report(report, MANIFEST, Path("/runs/a")))
    title, picture, caption = [token for token in tokens if token.type == "inline"][:3]
    assert shown(title) == shown(caption) == " ".join(name.splitlines())
    (image,) = picture.children
    assert image.type == "image" and image.attrs["src"] == "figures/a%20b.png"
    assert "".join(part.content for part in image.children) == shown(title)


@pytest.mark.parametrize("directory", ["/runs/a b", "/runs/`a`", "/runs/a``b"])
def test_the_last_line_is_code_whatever_the_directory_is_called(directory: str) -> None:
    last = MarkdownIt("commonmark").parse(render_report(Report(title="t", threat=[]), MANIFEST, Path(directory)))[-2]
    text, code = last.children
    assert (text.content, code.type) == ("Rebuild and compare: ", "code_inline") and directory in code.content


def test_the_command_stays_within_its_block() -> None:
    manifest = MANIFEST | {"overrides": ["x=```\n# not a heading"]}
    tokens = MarkdownIt("commonmark").parse(render_report(Report(title="t", threat=[]), manifest, Path("/runs/a")))
    assert [token.content for token in tokens if token.type == "fence"] == [f"{command_line(manifest)}\n"]


def test_provenance_tells_dirty_trees_and_resumed_runs(run: Run) -> None:
    code = {"version": "1", "commit": "a" * 40, "dirty": True, "sha256": "b" * 64}
    manifest: dict[str, Any] = run.manifest | {"code": code, "sessions": run.manifest["sessions"] * 3}
    lines = provenance(manifest)
    assert lines["code"] == f"robustcli 1, {'a' * 12}, with changes that are not committed, sources sha256 {'b' * 12}"
    assert lines["resumed"] == "2 times"
    assert "not from a git tree" in provenance(manifest | {"code": code | {"commit": None, "dirty": None}})["code"]


def test_import_is_light() -> None:
    code = (
        "import sys, robustcli.report.markdown\nprint([each for each in ('jinja2', 'pandas') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
