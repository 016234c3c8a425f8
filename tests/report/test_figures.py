"""Pictures exist, have their size, and show what they were given."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from robustcli.report import figures
from robustcli.report.figures import Example, changed_words, examples, lines, recall_over_eps


def points(models: int = 2) -> pd.DataFrame:
    rows = [
        {"model": f"model {model}", "direction": direction, "eps": eps / 255, "recall_at_1": 0.7 - eps / 20}
        for model in range(models)
        for direction in ("image_to_text", "text_to_image")
        for eps in (4, 0, 2)
    ]
    table = pd.DataFrame(rows)
    return table.assign(recall_at_1_low=table["recall_at_1"] - 0.1, recall_at_1_high=table["recall_at_1"] + 0.1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, while they are still objects."""
    kept: list[Figure] = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path, **how: (kept.append(figure), save(figure, path, **how)))
    return kept


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert len(image.convert("L").getcolors() or [0] * 9) > 8, "the picture is blank"
        return image.size


def test_recall_over_eps_draws_each_model_in_both_directions(tmp_path: Path, drawn: list[Figure]) -> None:
    recall_over_eps(points(), tmp_path / "eps.png", budget="PGD, one word")
    assert size(tmp_path / "eps.png") == (int(8.4 * 160), int(3.9 * 160))
    left, right = drawn[0].axes
    assert (left.get_title(), right.get_title()) == ("image to text", "text to image")
    for axes in (left, right):
        assert [line.get_label() for line in axes.get_lines()] == ["model 0", "model 1"]
        assert len(axes.collections) == 2, "each line has its band"
        assert axes.get_lines()[0].get_xdata() == pytest.approx([0, 2, 4])
        assert axes.get_lines()[0].get_ydata() == pytest.approx([70, 60, 50])
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "2", "4"]


def test_lines_without_panels_or_bands(tmp_path: Path, drawn: list[Figure]) -> None:
    table = pd.DataFrame({"model": ["a", "a"], "share": [0.01, 0.5], "recall": [0.9, 0.1]})
    lines(table, tmp_path / "a.png", x="share", y="recall", x_label="share", y_label="recall (%)")
    assert size(tmp_path / "a.png") == (int(4.8 * 160), int(3.9 * 160))
    (axes,) = drawn[0].axes
    assert not axes.collections
    assert axes.get_lines()[0].get_ydata() == pytest.approx([90, 10])


def test_styles_tell_seven_lines_apart_in_colour_and_in_grey(tmp_path: Path, drawn: list[Figure]) -> None:
    recall_over_eps(points(7), tmp_path / "a.png")
    shown = drawn[0].axes[0].get_lines()
    assert len({line.get_color() for line in shown}) == len({line.get_marker() for line in shown}) == 7


def pair(change: float) -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.full((3, 8, 8), 0.5)
    attacked = clean.clone()
    attacked[0, 0, 0] += change
    return clean, attacked


def test_examples_show_the_difference_at_the_factor_they_name(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [Example(*pair(0.01), "a red ring", "a crimson ring", "rank 1, then 37"), Example(*pair(0), "two", "two")]
    examples(rows, tmp_path / "a.png", title="SGA")
    assert size(tmp_path / "a.png")[0] == int(9.2 * 160)
    axes = drawn[0].axes
    assert axes[2].get_title() == "difference × 25"
    shown = np.asarray(axes[2].get_images()[0].get_array())
    assert shown[0, 0] == pytest.approx([0.75, 0.5, 0.5], abs=1e-4)
    assert shown[3, 3] == pytest.approx([0.5] * 3)


def test_all_text_of_examples_stays_inside_without_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    long = "a large green triangle at the bottom right and a small blue square on a striped background near it"
    rows = [Example(*pair(0.01), long, long.replace("green", "emerald"), "rank 1, then 112")] * 3
    examples(rows, tmp_path / "a.png", title="SGA")
    whole = drawn[0].bbox
    previous = None
    for axes in drawn[0].axes[3::4]:
        box = axes.artists[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0
        assert previous is None or box.y1 <= previous, "captions of two rows overlap"
        previous = box.y0


def test_changed_words_are_those_without_a_partner() -> None:
    before, after = changed_words("a small red ring", "a small crimson ring")
    assert before == [False, False, True, False] and after == [False, False, True, False]
    assert changed_words("two shapes", "two shapes") == ([False] * 2, [False] * 2)
    assert changed_words("a ring", "a tiny ring") == ([False] * 2, [False, True, False])


def test_wrong_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        examples([Example(torch.zeros(8, 8, 3), torch.zeros(8, 8, 3), "a", "b")], tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one"):
        examples([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_equal_figures_have_equal_bytes_and_pyplot_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        recall_over_eps(points(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_letters_without_a_glyph_are_boxes_and_long_words_go_on_in_the_next_line(
    tmp_path: Path, drawn: list[Figure], recwarn: pytest.WarningsRecorder
) -> None:
    grey = torch.full((3, 8, 8), 0.5)
    long = "Donaudampfschiff" * 6
    rows = [Example(grey, grey + 0.02, "dog 🏃🏽\u200d♀\ufe0f שלום", f"a {long} runs", note=f"label {long}")]
    examples(rows, tmp_path / "a.png", texts=figures.ANSWERS)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    texts = [text.get_text() for text in drawn[0].findobj(Text)]
    assert "▯♀" in texts and "שלום" in texts and figures.ANSWERS[0] in texts
    assert "".join(text for text in texts if len(text) > 9 and text in long) == long, "all of it, in parts"
    renderer = drawn[0].canvas.get_renderer()  # type: ignore[attr-defined]
    ends = [text.get_window_extent(renderer).x1 for text in drawn[0].findobj(Text) if text.get_text()]
    assert max(ends) <= drawn[0].get_figwidth() * figures.DPI


def test_dollar_signs_and_underscores_are_text(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [Example(*pair(0.01), "a sign $9#deal$5 here", r"a sign $\nix$ there", "$x_1$")]
    examples(rows, tmp_path / "a.png", title="$_{^}$")
    named = points(1).assign(model="_$a_b_c$")
    recall_over_eps(named, tmp_path / "b.png", budget="$5#$")
    assert size(tmp_path / "a.png") and size(tmp_path / "b.png")
    (legend,) = drawn[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["_$a_b_c$"]
    assert not any(text.get_parse_math() for figure in drawn for text in figure.findobj(Text))
