"""Pictures of a run: robust recall over the budget, any measure over a knob, and the attacked samples themselves.

Every figure is an object of its own and is drawn by Agg, without the global state of pyplot. Shapes: H height, W width.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker

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


@dataclass(frozen=True)
class Example:
    """One attacked pair.

    Attributes:
        clean: image (3,H,W) in [0,1]; an array or a tensor on the CPU.
        adversarial: the same under attack.
        caption: as written.
        adversarial_caption: as edited.
        note: what became of it, for example ``right caption: rank 1, under attack 37``.
    """

    clean: Any
    adversarial: Any
    caption: str
    adversarial_caption: str
    note: str = ""


def recall_over_eps(
    frame: "pd.DataFrame", path: Path, *, measure: str = "recall_at_1", budget: str = "", norm: str = "linf"
) -> None:
    """Robust recall over eps, one panel a direction, one line a model with its 95 % interval.

    Args:
        frame: ``model``, ``direction``, ``eps`` (share of the pixel range, 4/255 and not 4) and the measure as a share
            in [0, 1] with, where known, ``<measure>_low`` and ``<measure>_high``.
        path: the PNG to write.
        measure: which column to draw.
        budget: what else the attack may do, for example ``PGD, one word``; stands in the title.
        norm: of eps, ``linf`` or ``l2``.
    """
    points, label = frame.assign(eps=frame["eps"] * 255), "eps of the image attack (1/255)"
    if norm == "l2":
        points, label = frame, "eps of the image attack (L2 norm, pixels in [0, 1])"
    name = f"{title_of(measure, directions_of(frame))} (%)"
    title = "Under attack" + (f" ({budget})" if budget else "")
    lines(points, path, x="eps", y=measure, x_label=label, y_label=name, title=title)


def lines(
    frame: "pd.DataFrame",
    path: Path,
    *,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    by: str = "model",
    panel: str = "direction",
    title: str = "",
    percent: bool = True,
    log_x: bool = False,
) -> None:
    """Lines of ``y`` over ``x``, one for each value of ``by``, with bands from ``<y>_low`` to ``<y>_high`` where given.

    Args:
        frame: the points, in any order.
        path: the PNG to write.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        x_label: its name and unit.
        y_label: the same for the vertical axis.
        by: column that tells the lines apart.
        panel: column that tells the panels apart; one panel where the frame lacks it.
        title: above all panels.
        percent: draw shares in [0, 1] as percent from 0 to 100.
        log_x: logarithmic horizontal axis.
    """
    panels = list(dict.fromkeys(frame[panel])) if panel in frame else [None]
    names = list(dict.fromkeys(frame[by]))
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.9), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, value in zip(grid, panels, strict=True):
        shown = frame if value is None else frame[frame[panel] == value]
        for index, name in enumerate(names):
            _line(axes, shown[shown[by] == name].sort_values(x), x, y, str(name), index, 100.0 if percent else 1.0)
        _dress(axes, x_label, "" if value is None else DIRECTIONS.get(str(value), str(value)))
        _ticks(axes, sorted(set(frame[x])), log_x)
        if percent:
            axes.set_ylim(-2, 102)
    grid[0].set_ylabel(y_label, color=INK)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 4), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    save(figure, path)


def examples(rows: Sequence[Example], path: Path, *, title: str = "", amplify: int | None = None) -> None:
    """Clean image, attacked image, amplified difference, and the caption with the changed words in bold colour.

    Args:
        rows: at least one example.
        path: the PNG to write.
        title: above the pictures.
        amplify: factor of the difference, which is shown around mid-grey; None scales the largest change
            to half of the range. It stands over the column.
    """
    if not rows:
        raise ValueError("a picture of examples needs at least one example")
    pairs = [(_array(row.clean), _array(row.adversarial)) for row in rows]
    factor = amplify or _amplification(pairs)
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
        _captions(axes[3], row)
    for axes, name in zip(grid[0], ("clean", "attacked", f"difference × {factor}"), strict=False):
        axes.set_title(name, fontsize=9.5, color=INK, pad=5)
    grid[0][3].set_title("caption, and as edited", fontsize=9.5, color=INK, pad=5, loc="left")
    if title:
        figure.text(0.012, 1 - 0.12 / height, title, fontsize=11, color=INK, va="top")
    save(figure, path)


def changed_words(caption: str, edited: str) -> tuple[list[bool], list[bool]]:
    """For each word of the caption and of its edited form whether it has no partner in the other, by longest match."""
    from difflib import SequenceMatcher

    before, after = caption.split(), edited.split()
    kept_before, kept_after = [True] * len(before), [True] * len(after)
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        kept_before[block.a : block.a + block.size] = [False] * block.size
        kept_after[block.b : block.b + block.size] = [False] * block.size
    return kept_before, kept_after


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes for the same figure."""
    FigureCanvasAgg(figure)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def _line(axes: Axes, points: "pd.DataFrame", x: str, y: str, name: str, index: int, scale: float) -> None:
    style = index % len(COLOURS)
    axes.plot(
        points[x],
        points[y] * scale,
        label=name,
        color=COLOURS[style],
        marker=MARKERS[style],
        linestyle=DASHES[style],
        markersize=5,
        linewidth=1.8,
    )
    if f"{y}_low" in points:
        low, high = points[f"{y}_low"] * scale, points[f"{y}_high"] * scale
        axes.fill_between(points[x], low, high, color=COLOURS[style], alpha=0.18, linewidth=0)


def _dress(axes: Axes, x_label: str, title: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_title(title, fontsize=10, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def _ticks(axes: Axes, values: Sequence[float], log_x: bool) -> None:
    # Where something was measured; only a long series falls back to round numbers.
    if log_x:
        axes.set_xscale("log")
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


def _captions(axes: Axes, row: Example) -> None:
    axes.set_axis_off()
    before, after = changed_words(row.caption, row.adversarial_caption)
    blocks: list[Any] = [_words(row.caption, before, INK)]
    if row.caption == row.adversarial_caption:
        blocks.append(_remark("not edited"))
    else:
        blocks.append(_words(row.adversarial_caption, after, EDITED))
    if row.note:
        blocks.append(_remark(row.note))
    packed = VPacker(children=blocks, align="left", pad=0, sep=7)
    axes.add_artist(AnchoredOffsetbox("center left", child=packed, pad=0.2, frameon=False, borderpad=0.2))


def _remark(text: str) -> TextArea:
    return TextArea(text, textprops={"fontsize": 8.5, "color": FADED, "style": "italic"})


def _words(text: str, changed: Sequence[bool], colour: str) -> VPacker:
    """The text in lines of at most :data:`LINE` letters; the changed words are bold and of ``colour``."""
    words = zip(text.split(), changed, strict=True)
    rows: list[Any] = [
        HPacker(children=[_word(*next(words), colour) for _ in line.split()], align="baseline", pad=0, sep=4)
        for line in textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False)
    ]
    return VPacker(children=rows, align="left", pad=0, sep=4)


def _word(text: str, is_changed: bool, colour: str) -> TextArea:
    weight = "bold" if is_changed else "normal"
    return TextArea(text, textprops={"fontsize": 9.5, "color": colour if is_changed else INK, "weight": weight})
