"""Figures of a run: robust recall over eps, lines of a share over a setting, and adversarial examples.

Every figure is an object of its own and is drawn by Agg, without the global state of pyplot. Shapes: H height, W width.
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.text import Text

from robustcli.evaluation.evaluator import Example
from robustcli.report.tables import DIRECTIONS, directions_of, title_of
from robustcli.utils import files

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito 2008: told apart with every kind of colour vision; the markers and dashes tell the lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
INK, FADED, FAINT, EDITED = "#222222", "#666666", "#D9D9D9", "#D55E00"
LINE = 54
DPI = 160


def recall_over_eps(frame: "pd.DataFrame", path: Path, *, budget: str = "", norm: str = "linf") -> None:
    """Robust recall over eps, one panel a direction, one line a model with its 95 % interval.

    Args:
        frame: ``model``, ``direction``, ``eps`` (share of the pixel range, 4/255 and not 4) and ``recall_at_1`` as a
            share in [0, 1] with, where known, ``recall_at_1_low`` and ``recall_at_1_high``.
        path: the PNG to write.
        budget: what else the attack may do, for example ``PGD, one word``; stands in the title.
        norm: of eps, ``linf`` or ``l2``.
    """
    points, label = frame.assign(eps=frame["eps"] * 255), "eps of the image attack (1/255)"
    if norm == "l2":
        points, label = frame, "eps of the image attack (L2 norm, pixels in [0, 1])"
    name = f"{title_of('recall_at_1', directions_of(frame))} (%)"
    title = "Under attack" + (f" ({budget})" if budget else "")
    lines(points, path, x="eps", y="recall_at_1", x_label=label, y_label=name, title=title)


def lines(
    frame: "pd.DataFrame",
    path: Path,
    *,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    by: str = "model",
    title: str = "",
) -> None:
    """Lines of the share ``y`` in percent over ``x``, one for each value of ``by``, with bands from ``<y>_low`` to
    ``<y>_high`` where given.

    Args:
        frame: the points, in any order; one panel for each ``direction``, where they have any.
        path: the PNG to write.
        x: column of the horizontal axis.
        y: column of the vertical axis, shares in [0, 1].
        x_label: its name and unit.
        y_label: the same for the vertical axis.
        by: column that tells the lines apart.
        title: above all panels.
    """
    panels = list(dict.fromkeys(frame["direction"])) if "direction" in frame else [None]
    names = list(dict.fromkeys(frame[by]))
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.9), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, value in zip(grid, panels, strict=True):
        shown = frame if value is None else frame[frame["direction"] == value]
        for index, name in enumerate(names):
            _line(axes, shown[shown[by] == name].sort_values(x), x, y, str(name), index)
        _dress(axes, x_label, "" if value is None else DIRECTIONS.get(str(value), str(value)))
        _ticks(axes, sorted(set(frame[x])))
        axes.set_ylim(-2, 102)
    grid[0].set_ylabel(y_label, color=INK)
    legend(figure, grid[0], loc="outside lower center", ncols=min(len(names), 4), fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    save(figure, path, drawing=True)


CAPTIONS = "caption, and as edited", "not edited"
ANSWERS = "answer, and under attack", "the same answer"


def examples(rows: Sequence[Example], path: Path, *, title: str = "", texts: tuple[str, str] = CAPTIONS) -> None:
    """Grid of examples: clean and adversarial image, their difference, and both captions with edited words in bold.

    The difference is amplified by the factor over its column, around mid-grey: the largest takes half of the range.

    Args:
        rows: at least one example.
        path: the PNG to write.
        title: above the pictures.
        texts: what the texts of an example are, and what is said where both are the same.

    Raises:
        ValueError: no rows, or an image that is not (3, H, W).
    """
    if not rows:
        raise ValueError("a picture of examples needs at least one example")
    pairs = [(_array(row.clean), _array(row.adversarial)) for row in rows]
    factor = _amplification(pairs)
    height = 1.42 * len(rows) + 0.75
    figure = Figure(figsize=(9.2, height))
    top = 1 - (0.62 if title else 0.34) / height
    grid = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 3.7))
    figure.subplots_adjust(left=0.012, right=0.995, top=top, bottom=0.07 / height, wspace=0.06, hspace=0.09)
    for axes, row, (clean, adversarial) in zip(grid, rows, pairs, strict=True):
        difference = np.clip(0.5 + factor * (adversarial - clean), 0, 1)
        for place, picture in zip(axes, (clean, adversarial, difference), strict=False):
            place.imshow(picture, interpolation="nearest" if picture.shape[0] < 128 else "antialiased")
            place.set_axis_off()
            place.set_anchor("N")
        _captions(axes[3], row, same=texts[1])
    for axes, name in zip(grid[0], ("clean", "attacked", f"difference × {factor}"), strict=False):
        axes.set_title(name, fontsize=9.5, color=INK, pad=5)
    grid[0][3].set_title(texts[0], fontsize=9.5, color=INK, pad=5, loc="left")
    if title:
        figure.text(0.012, 1 - 0.12 / height, title, fontsize=11, color=INK, va="top")
    save(figure, path)


def changed_words(caption: str, edited: str) -> tuple[list[bool], list[bool]]:
    """Masks over the words of a caption and of its edited form: True for a word without match in the other."""
    from difflib import SequenceMatcher

    before, after = caption.split(), edited.split()
    kept_before, kept_after = [True] * len(before), [True] * len(after)
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        kept_before[block.a : block.a + block.size] = [False] * block.size
        kept_after[block.b : block.b + block.size] = [False] * block.size
    return kept_before, kept_after


def save(figure: Figure, path: Path, *, drawing: bool = False) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes for the same figure.

    All text is drawn as it stands: captions and names may hold dollar signs, between which matplotlib reads formulas.

    Args:
        drawing: also as SVG beside it, which stays sharp.
    """
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text(), get_font(findfont(text.get_fontproperties()))))
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    if drawing:
        with files.atomic(path.with_suffix(".svg")) as temporary, rc_context({"svg.hashsalt": path.stem}):
            figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})


# Parts of other letters, which have no width of their own: joiners, variation selectors, tones of skin.
_PARTS = re.compile("[\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
_NO_GLYPH = "▯"


def drawable(text: str, font: FT2Font) -> str:
    """``text`` with a box in place of each letter that ``font`` lacks, such as an emoji: matplotlib would warn of each
    on the terminal and draw them over each other.
    """
    return "".join(c if c in "\n\t" or font.get_char_index(ord(c)) else _NO_GLYPH for c in _PARTS.sub("", text))


def legend(figure: Figure, axes: Axes, **settings: Any) -> None:
    """Legend of the lines of ``axes``; matplotlib's own leaves out a line whose name begins with an underscore."""
    drawn = axes.get_lines()
    figure.legend(drawn, [str(line.get_label()) for line in drawn], frameon=False, **settings)


def _line(axes: Axes, points: "pd.DataFrame", x: str, y: str, name: str, index: int) -> None:
    style = index % len(COLOURS)
    axes.plot(
        points[x],
        100 * points[y],
        label=name,
        color=COLOURS[style],
        marker=MARKERS[style],
        linestyle=DASHES[style],
        markersize=5,
        linewidth=1.8,
    )
    if f"{y}_low" in points:
        low, high = 100 * points[f"{y}_low"], 100 * points[f"{y}_high"]
        axes.fill_between(points[x], low, high, color=COLOURS[style], alpha=0.18, linewidth=0)


def _dress(axes: Axes, x_label: str, title: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_title(title, fontsize=10, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    # Where something was measured; only a long series falls back to round numbers.
    if len(values) <= 7:
        axes.set_xticks(values, [f"{value:.3g}" for value in values])
        axes.set_xticks([], minor=True)


def _array(image: Any) -> "np.ndarray[Any, np.dtype[np.float64]]":
    values = np.asarray(image, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] != 3:
        raise ValueError(f"an image is of shape (3, H, W), got {values.shape}")
    return np.clip(values.transpose(1, 2, 0), 0, 1)


def _amplification(pairs: Sequence[tuple[Any, Any]]) -> int:
    largest = max(float(np.abs(adversarial - clean).max()) for clean, adversarial in pairs)
    return 1 if largest == 0 else max(1, int(0.25 / largest))


def _captions(axes: Axes, row: Example, *, same: str) -> None:
    axes.set_axis_off()
    before, after = changed_words(row.caption, row.adversarial_caption)
    blocks: list[Any] = [_words(row.caption, before, INK)]
    if row.caption == row.adversarial_caption:
        blocks.append(_remark(same))
    else:
        blocks.append(_words(row.adversarial_caption, after, EDITED))
    if row.note:
        blocks.append(_remark(textwrap.fill(row.note, LINE)))
    packed = VPacker(children=blocks, align="left", pad=0, sep=7)
    axes.add_artist(AnchoredOffsetbox("center left", child=packed, pad=0.2, frameon=False, borderpad=0.2))


def _remark(text: str) -> TextArea:
    return TextArea(text, textprops={"fontsize": 8.5, "color": FADED, "style": "italic"})


def _words(text: str, changed: Sequence[bool], colour: str) -> VPacker:
    """The text in lines of at most :data:`LINE` letters; the changed words are bold and of ``colour``."""
    words = [  # one that is longer than a line goes on in the next
        (part, mark) for word, mark in zip(text.split(), changed, strict=True) for part in textwrap.wrap(word, LINE)
    ]
    marks = iter(mark for _, mark in words)
    rows: list[Any] = [
        HPacker(children=[_word(word, next(marks), colour) for word in line.split()], align="baseline", pad=0, sep=4)
        for line in textwrap.wrap(" ".join(word for word, _ in words), LINE, break_on_hyphens=False)
    ]
    return VPacker(children=rows, align="left", pad=0, sep=4)


def _word(text: str, is_changed: bool, colour: str) -> TextArea:
    weight = "bold" if is_changed else "normal"
    return TextArea(text, textprops={"fontsize": 9.5, "color": colour if is_changed else INK, "weight": weight})
