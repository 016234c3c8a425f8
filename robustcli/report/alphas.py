"""Figures and table of a search for alphas: history, Pareto front, schedules, held-out accuracies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustcli.metrics import Interval
from robustcli.report.figures import COLOURS, DASHES, FADED, FAINT, INK, MARKERS, save
from robustcli.report.tables import MISSING, Grid

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {"adversarial": "adversarial images", "clean": "clean images", "adaptive": "attacked adaptively"}


def accuracy_grid(accuracies: Mapping[str, Mapping[str, Interval]], split: str) -> Grid:
    """Accuracies on the held-out ``split``: schedules as rows, kinds of images as columns."""
    kinds = list(next(iter(accuracies.values())))
    rows = [[name, *(_cell(by_kind[kind]) for kind in kinds)] for name, by_kind in accuracies.items()]
    note = (
        "± reaches to the farther end of the 95 % interval (Wilson). The adversarial images fool the reconstruction by "
        "choice, and are the same for every row: NOT an adaptive attack."
    )
    if "adaptive" in kinds:
        note += (
            " Those attacked adaptively are the clean ones, attacked through the purifier with the alphas of the row."
        )
    return Grid(
        f"Accuracy in percent on images of the split {split}, which the search has not seen",
        ["alphas", *(_WORDS.get(kind, kind) for kind in kinds)],
        rows,
        note,
    )


def search_history(trials: "pd.DataFrame", objectives: Sequence[str], path: Path) -> None:
    """Values of every trial and the running maximum, one panel an objective.

    Args:
        trials: the objectives as shares in [0,1], in the order of the search.
        objectives: columns of ``trials``.
        path: the PNG to write.
    """
    figure = Figure(figsize=(1.2 + 3.6 * len(objectives), 3.6), layout="constrained")
    panels = figure.subplots(1, len(objectives), squeeze=False)[0]
    for axes, name in zip(panels, objectives, strict=True):
        values = 100 * trials[name].to_numpy()
        axes.plot(values, linestyle="", marker="o", markersize=4, color=COLOURS[0], label="one trial")
        axes.plot(
            np.maximum.accumulate(values),
            drawstyle="steps-post",
            color=COLOURS[1],
            linewidth=1.8,
            label="best up to then",
        )
        _dress(axes, "trial", f"accuracy on {_WORDS.get(name, name)} (%)")
    panels[0].legend(frameon=False, fontsize=9)
    save(figure, path)


def pareto(trials: "pd.DataFrame", objectives: Sequence[str], path: Path) -> None:
    """Trials in the plane of two objectives, with the Pareto front and the chosen trial.

    Args:
        trials: the objectives as shares in [0,1], ``origin``, and ``front`` and ``chosen``, bool.
        objectives: vertical axis, horizontal axis.
        path: the PNG to write.
    """
    upright, level = objectives
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        100 * trials[level], 100 * trials[upright], linestyle="", marker="o", markersize=4, color=FADED, alpha=0.5
    )
    front = trials[trials["front"]].sort_values(level)
    axes.plot(
        100 * front[level], 100 * front[upright], drawstyle="steps-pre", marker="o", color=COLOURS[0], label="front"
    )
    for index, name in enumerate(("linear", "cosine"), start=2):
        start = trials[trials["origin"] == name]
        if len(start):
            axes.plot(
                100 * start[level],
                100 * start[upright],
                linestyle="",
                marker=MARKERS[index],
                color=COLOURS[index],
                markersize=8,
                label=name,
            )
    chosen = trials[trials["chosen"]]
    axes.plot(
        100 * chosen[level],
        100 * chosen[upright],
        linestyle="",
        marker="*",
        markersize=15,
        color=COLOURS[1],
        label="chosen",
    )
    _dress(axes, f"accuracy on {_WORDS.get(level, level)} (%)", f"accuracy on {_WORDS.get(upright, upright)} (%)")
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def schedules(by_name: Mapping[str, Sequence[float]], path: Path, *, attenuation: float) -> None:
    """Curves of schedules: the share of each latent that is resampled, coarse to fine, times the attenuation."""
    figure = Figure(figsize=(5.8, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, alphas) in enumerate(by_name.items()):
        style = index % len(COLOURS)
        axes.plot(
            range(1, len(alphas) + 1),
            [attenuation * alpha for alpha in alphas],
            label=name,
            color=COLOURS[style],
            marker=MARKERS[style],
            linestyle=DASHES[style],
            markersize=5,
        )
    axes.set_ylim(-0.02, 1.02)
    _dress(axes, "latent, coarse to fine", "share that is drawn anew")
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def information(latents: "pd.DataFrame", path: Path) -> None:
    """Bars of what each latent tells of the class, with 95 % intervals, and a line at the entropy of the class.

    Args:
        latents: ``latent``, ``nats``, ``low``, ``high`` and ``entropy``.
        path: the PNG to write.
    """
    figure = Figure(figsize=(5.8, 3.6), layout="constrained")
    axes = figure.subplots()
    nats = latents["nats"].to_numpy()
    far = [nats - latents["low"].to_numpy(), latents["high"].to_numpy() - nats]
    axes.bar(latents["latent"], nats, yerr=far, color=COLOURS[0], ecolor=INK, error_kw={"linewidth": 1.0})
    axes.axhline(float(latents["entropy"].iloc[0]), color=FADED, linewidth=1.0)
    axes.text(0.01, 0.97, "line: entropy of the class", transform=axes.transAxes, va="top", fontsize=8, color=FADED)
    _dress(axes, "latent, coarse to fine", "tells of the class (nats)")
    save(figure, path)


def _cell(interval: Interval) -> str:
    if interval.mean is None or interval.low is None or interval.high is None:
        return MISSING
    far = max(interval.mean - interval.low, interval.high - interval.mean)
    return f"{100 * interval.mean:.1f}\n±{100 * far:.1f}"


def _dress(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
