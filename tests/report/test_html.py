"""The page of a report: whole in one file, safe for any text, and fit to read on a phone and on a desk."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from robustcli.report.figures import save
from robustcli.report.html import render_html
from robustcli.report.markdown import Picture, Report
from robustcli.report.tables import Grid
from robustcli.runs.run import Run

from ..browser import WIDTHS, chromium, errors, shown

ODD = "<script>alert(1)</script> \"quoted\" 'so' $x$ **b** שלום 🙂 &amp; `code`"
browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with Run.open("evaluate", {}, tmp_path_factory.mktemp("run") / "a", ["seed=3", f"checkpoint='{ODD}'"]) as run:
        run.finish(0.0)
    return run.manifest


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A report as those of evaluations, with a wide table, and names that nobody should use."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    save(figure, tmp_path / "curve.png", drawing=True)
    save(figure, tmp_path / "grid.png")
    numbers = Grid("The curve", ["model", "0", "4/255"], [["mat", "90.0", "20.0"]])
    texts = Grid(ODD, ["", "answer"], [["1", f"{ODD} {'word' * 90}"]])
    wide = Grid(
        f"Recall {ODD}",
        ["model", *(f"attack {number}" for number in range(14))],
        [[f"{name} {ODD}", *(f"{90 - number:.1f} / 50.0\n±3.0 / ±2.0" for number in range(14))] for name in "ab"],
        "A note.",
    )
    verdicts = Grid("Diagnostics", ["model", "verdict"], [["b", "10.0\nsuspect"], ["a", "9.0\nok (2 left out)"]])
    return Report(
        title=f"Evaluation {ODD}",
        threat=["The attacker knows *all* weights."],
        answer=[f"{ODD}: 90.0 % right."],
        summary="**THE COLUMN IS MISSING**\n\n**another**",
        tables=[wide, verdicts],
        figures=[
            Picture(f"A curve {ODD}", tmp_path / "curve.png", numbers),
            Picture("A grid", tmp_path / "grid.png", texts, "The texts"),
        ],
        inputs=[ODD],
        caveats=["A robust figure is an *upper* bound: <b>no tag</b>."],
    )


@pytest.fixture
def page(report: Report, manifest: dict[str, Any]) -> str:
    return render_html(report, manifest, Path("/runs/a"))


class Tags(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_texts_of_users_stay_texts(page: str) -> None:
    seen = Tags(page)
    assert [tag for tag, _ in seen.tags].count("script") == 1, "ours, which sorts"
    assert not {"b", "iframe"} & {tag for tag, _ in seen.tags}
    assert seen.text.count(ODD) >= 6 and "<b>no tag</b>" in seen.text
    assert any(tag == "img" and attributes["alt"] == f"A curve {ODD}" for tag, attributes in seen.tags)


def test_texts_of_a_picture_stand_beside_it_as_texts(page: str) -> None:
    assert "<summary>The texts</summary>" in page and "<summary>The numbers</summary>" in page
    assert 'class="long "' in page, "a column of sentences is no tower of words on a phone"
    assert page.count('dir="auto"') >= 4, "a text that runs from right to left does so in its cell"


def test_it_needs_no_other_file(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in page and "@import" not in page
    kinds = re.findall(r'<img src="data:([^;]+);base64,([^"]+)"', page)
    assert [kind for kind, _ in kinds] == ["image/svg+xml", "image/png"], "a curve is a drawing, examples are pixels"
    assert base64.b64decode(kinds[1][1]).startswith(b"\x89PNG")


def test_what_is_emphasised_in_sentences_of_ours_is(page: str) -> None:
    assert "<em>all</em>" in page and "<strong>THE COLUMN IS MISSING</strong>" in page


def test_verdicts_are_told_apart(page: str) -> None:
    assert re.search(r'<td class="number suspect">10.0<br><small>suspect</small></td>', page)
    assert re.search(r'<td class="number ok">9.0<br><small>ok \(2 left out\)</small></td>', page)


def test_the_drawing_of_a_figure_has_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        figure = Figure()
        figure.subplots().plot(np.arange(3))
        (tmp_path / name).mkdir()
        save(figure, tmp_path / name / "curve.png", drawing=True)
        made.append((tmp_path / name / "curve.svg").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_the_console_is_silent(browser: Any, page: str, tmp_path: Path, width: int) -> None:
    shown(browser, page, tmp_path, width)
    wide, held = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.querySelectorAll('.scroll').length]"
    )
    assert wide <= width and held == 4
    assert errors(browser) == []
    broken = "return [...document.images].filter(each => each.complete && !each.naturalWidth).length"
    assert browser.execute_script("for (const each of document.images) each.loading = 'eager';" + broken) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser: Any, page: str, tmp_path: Path, dark: bool) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3) for every text, in light and in dark."""
    shown(browser, page, tmp_path, 1440, dark=dark)
    found = browser.execute_script(
        """
        const ground = (e) => {
          for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (c !== 'rgba(0, 0, 0, 0)') return c;
          }
          return 'rgb(255, 255, 255)';
        };
        return [...document.querySelectorAll('main *')]
          .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
          .map((e) => [e.tagName + '.' + e.className, getComputedStyle(e).color, ground(e)]);
        """
    )
    assert len(found) > 50
    for name, ink, paper in found:
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ink, paper)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.2)."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_table_is_sorted_by_a_column(browser: Any, page: str, tmp_path: Path) -> None:
    shown(browser, page, tmp_path, 1440)
    first = "return [...document.querySelectorAll('table')[1].tBodies[0].rows].map(r => r.cells[1].textContent)"
    press = "document.querySelectorAll('table')[1].querySelectorAll('thead button')[1].click();"
    assert [each[:4] for each in browser.execute_script(press + first)] == ["9.0o", "10.0"], "by number, not by letter"
    assert [each[:4] for each in browser.execute_script(press + first)] == ["10.0", "9.0o"]
