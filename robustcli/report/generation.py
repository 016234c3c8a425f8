"""Results of a trained generator: likelihood, reconstructions, samples, and images from their coarsest latents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from robustcli.evaluation.generation import FiguresJudge, GenerationJudge
from robustcli.models.generators import NVAE, Trained
from robustcli.report.album import Album
from robustcli.report.figures import INK, save
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.run import Run

_COLUMNS, _MOST_ROWS = 8, 9
_NAMES = {  # of the figures of `Trained`
    "mse": "squared error of a reconstruction",
    "kl": "KL of the posterior, nats an entry of the latent",
    "noise_mse": "squared error of the predicted noise",
    "noise_mse_tenth": "the same at a tenth of the levels",
}


def write_generation(
    run: Run,
    evaluator: GenerationJudge | FiguresJudge,
    model: NVAE | Trained,
    records: pd.DataFrame,
    history: Mapping[str, float],
) -> dict[str, float]:
    """Write records, metrics, pictures and the report, and print the table; returns the metrics of the generator.

    Args:
        records: one row an image, of ``evaluator.records``.
        history: metrics of the training, which join those of the generator.
    """
    figures = evaluator.figures(records)
    run.write_records(records)
    run.write_metrics({**history, **figures})
    grid = Grid(
        f"On {len(records)} images of {evaluator.data.name} {evaluator.data.split}",
        ["", "value"],
        _rows(figures, model),
    )
    album, caveats = Album(run), ["Bits are an upper bound, from one draw of the latents for each image."]
    if isinstance(model, Trained):
        assert isinstance(evaluator, FiguresJudge)
        _draw_trained(album, evaluator, model)
        caveats = []
    else:
        assert isinstance(evaluator, GenerationJudge)
        _draw(album, evaluator, model)
    report = Report(
        title=f"A generator of {evaluator.data.name}",
        threat=[],
        tables=[grid],
        figures=album.pictures,
        caveats=[*map(literal, album.failures), *caveats],
    )
    publish(run, report)
    print_grid(grid)
    for sentence in album.failures:
        print(sentence, flush=True)
    return figures


def _rows(figures: Mapping[str, float], model: NVAE | Trained) -> list[tuple[str, str]]:
    weights = ("weights", f"{sum(weight.numel() for weight in model.parameters()):,}")
    if isinstance(model, Trained):
        return [*((_NAMES[name], f"{value:.5f}") for name, value in figures.items()), weights]
    latents = [f"{value:.3f}" for name, value in figures.items() if name.startswith("latent_")]
    return [
        ("bits per dimension", f"{figures['bits_per_dim']:.3f}"),
        ("of them in the likelihood", f"{figures['likelihood_bits']:.3f}"),
        ("in the latents, coarse to fine", ", ".join(latents)),
        ("squared error of a reconstruction", f"{figures['mse']:.5f}"),
        weights,
    ]


def _draw(album: Album, evaluator: GenerationJudge, model: NVAE) -> None:
    number = len(model.latent_shapes)
    kept = sorted({round(share * number / (_MOST_ROWS - 1)) for share in range(_MOST_ROWS)}, reverse=True)

    def rebuilt(path: Path) -> None:
        images, reconstructed = evaluator.reconstructions(model, _COLUMNS)
        image_grid([("image", images), ("rebuilt", reconstructed)], path)

    def swept(path: Path) -> None:
        images, _ = evaluator.reconstructions(model, _COLUMNS)
        pictures = evaluator.swept(model, _COLUMNS, kept)
        image_grid([("image", images), *((f"{k} kept", row) for k, row in zip(kept, pictures, strict=True))], path)

    def sampled(path: Path) -> None:
        samples = evaluator.samples(model, 4 * _COLUMNS)
        image_grid([("", samples[i : i + _COLUMNS]) for i in range(0, len(samples), _COLUMNS)], path)

    album.draw("reconstructions", "Images, and what is left of them when no latent is drawn anew.", rebuilt)
    album.draw("swept", f"From all {number} latents of the image to none: the finest are drawn anew first.", swept)
    album.draw("samples", f"Drawn from the prior at temperature {model.temperature:g}.", sampled)


def _draw_trained(album: Album, evaluator: FiguresJudge, model: Trained) -> None:
    def rebuilt(path: Path) -> None:
        images, made = evaluator.rebuilt(model, _COLUMNS)
        image_grid([("image", images), ("rebuilt", made)], path)

    def sampled(path: Path) -> None:
        samples = evaluator.samples(model, 4 * _COLUMNS)
        image_grid([("", samples[i : i + _COLUMNS]) for i in range(0, len(samples), _COLUMNS)], path)

    album.draw("reconstructions", "Images, and what the network makes of them.", rebuilt)
    album.draw("samples", "Drawn from noise alone.", sampled)


def image_grid(rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Grid of images as one PNG: rows of (n,C,H,W) images in [0,1], each with its name to the left."""
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
