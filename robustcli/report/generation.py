"""What a trained generator shows: its figures, reconstructions, samples, and the latents swept from coarse to fine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from robustcli.evaluation.generation import GenerationJudge
from robustcli.models.generators import NVAE
from robustcli.report.figures import INK, save
from robustcli.report.markdown import Report, render_report
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.run import Run

_COLUMNS, _MOST_ROWS = 8, 9


def write_generation(
    run: Run, judge: GenerationJudge, model: NVAE, records: pd.DataFrame, history: Mapping[str, float]
) -> dict[str, float]:
    """Write records, metrics, pictures and the report, print the table, and return the figures."""
    figures = judge.figures(records)
    run.write_records(records)
    run.write_metrics({**history, **figures})
    grid = Grid(
        f"On {len(records)} images of {judge.data.name} {judge.data.split}", ["", "value"], _rows(figures, model)
    )
    report = Report(
        title=f"A generator of {judge.data.name}",
        threat=[],
        tables=[grid],
        figures=_pictures(run, judge, model),
        caveats=["Bits are an upper bound, from one draw of the latents for each image."],
    )
    run.write_report(render_report(report, run.manifest, run.directory))
    print_grid(grid)
    return figures


def _rows(figures: Mapping[str, float], model: NVAE) -> list[tuple[str, str]]:
    latents = [f"{value:.3f}" for name, value in figures.items() if name.startswith("latent_")]
    return [
        ("bits per dimension", f"{figures['bits_per_dim']:.3f}"),
        ("of them in the likelihood", f"{figures['likelihood_bits']:.3f}"),
        ("in the latents, coarse to fine", ", ".join(latents)),
        ("squared error of a reconstruction", f"{figures['mse']:.5f}"),
        ("weights", f"{sum(weight.numel() for weight in model.parameters()):,}"),
    ]


def _pictures(run: Run, judge: GenerationJudge, model: NVAE) -> list[tuple[str, Path]]:
    number = len(model.latent_shapes)
    kept = sorted({round(share * number / (_MOST_ROWS - 1)) for share in range(_MOST_ROWS)}, reverse=True)
    images, rebuilt = judge.reconstructions(model, _COLUMNS)
    paths = {name: run.figure(name) for name in ("reconstructions", "swept", "samples")}
    image_grid([("image", images), ("rebuilt", rebuilt)], paths["reconstructions"])
    rows = [(f"{keep} kept", pictures) for keep, pictures in zip(kept, judge.swept(model, _COLUMNS, kept), strict=True)]
    image_grid([("image", images), *rows], paths["swept"])
    drawn = judge.samples(model, 4 * _COLUMNS)
    image_grid([("", drawn[i : i + _COLUMNS]) for i in range(0, len(drawn), _COLUMNS)], paths["samples"])
    return [
        ("Images, and what is left of them when no latent is drawn anew.", paths["reconstructions"]),
        (f"From all {number} latents of the image to none: the finest are drawn anew first.", paths["swept"]),
        (f"Drawn from the prior at temperature {model.temperature:g}.", paths["samples"]),
    ]


def image_grid(rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Rows of images, each (n,C,H,W) in [0,1] with its name to the left, as one PNG."""
    columns, margin = max(len(images) for _, images in rows), 0.85 if any(name for name, _ in rows) else 0.03
    width, height = margin + 0.85 * columns, 0.85 * len(rows)
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(left=margin / width, right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    for axes, (name, images) in zip(grid, rows, strict=True):
        for place in axes:
            place.set_axis_off()
        for place, image in zip(axes, images, strict=False):
            values = np.clip(image.numpy().transpose(1, 2, 0), 0, 1)
            place.imshow(values.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0].text(-0.1, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=9, color=INK)
    save(figure, path)
