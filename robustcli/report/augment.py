"""Results of an augmentation: how much was made, and examples beside their sources."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from robustcli.data import ImageTextData
from robustcli.data.augment.shards import StoredPair, read_pairs
from robustcli.report.album import Album
from robustcli.report.generation import image_grid
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError

_EXAMPLES, _COLUMNS = 5, 8


def write_augmentation(run: Run, data: ImageTextData, method: str, images: int) -> float:
    """Write metrics, examples and the report, and print the table; returns the number of pairs.

    Raises:
        UserError: not a single pair was made.
    """
    pairs = read_pairs(run.directory)
    if not pairs:
        raise UserError(
            f"augment={method} made no pair for {images} images of {data.name}: see its settings in conf/augment."
        )
    sources = Counter(pair.source for pair in pairs)
    known = [pair.true for pair in pairs if pair.true is not None]
    figures: dict[str, float] = {
        "pairs": len(pairs),
        "captions": sum(pair.caption is not None for pair in pairs),
        "images": sum(pair.image is not None for pair in pairs),
        "augmented_images": len(sources),
        "repetitions": sum(run.manifest.get("repetitions", {}).values()),
    }
    if known:
        figures["true_share"] = sum(known) / len(known)
    run.write_metrics(figures, pd.DataFrame([figures]))
    seconds = run.manifest.get("augment_seconds", 0.0)
    rows = [
        ("pairs", f"{len(pairs):,}, {len(pairs) / images:.2f} for an image"),
        ("new captions, new images", f"{figures['captions']:,.0f}, {figures['images']:,.0f}"),
        ("images with any", f"{len(sources):,} of {images:,}"),
        ("repetitions left out", f"{figures['repetitions']:,.0f}"),
        *([("of known truth, true", f"{100 * figures['true_share']:.1f} % of {len(known):,}")] if known else []),
        ("images a second", f"{images / seconds:.1f}" if seconds else "-"),
    ]
    grid = Grid(f"{method} on {images} images of {data.name} {data.split}", ["", "value"], rows)
    examples = _examples(pairs, data)
    album = Album(run)
    if drawn := [pair for pair in pairs if pair.image is not None][:_COLUMNS]:
        album.draw("augmented", "Images of the set, and below each a new one.", lambda path: _draw(drawn, data, path))
    report = Report(
        title=f"Augmentation of {data.name} by {method}",
        threat=[],
        tables=[grid, *([examples] if examples else [])],
        figures=album.pictures,
        inputs=data.notes,
        caveats=[*map(literal, album.failures), "Measure it before training with it: robustcli augment-quality."],
    )
    publish(run, report)
    print_grid(grid)
    if examples:
        print_grid(examples)
    return float(len(pairs))


def _examples(pairs: list[StoredPair], data: ImageTextData) -> Grid | None:
    """The first new captions, beside what they were made from."""
    row_of = {name: row for row, name in enumerate(data.image_ids)}
    captions_of = data.captions_of()
    rows = []
    for pair in [pair for pair in pairs if pair.caption is not None][:_EXAMPLES]:
        source = captions_of[row_of[pair.source]][pair.source_caption or 0]
        rows.append((pair.source, data.captions[int(source)], str(pair.caption)))
    return Grid("Examples", ["image", "caption of the set", "new caption"], rows) if rows else None


def _draw(pairs: list[StoredPair], data: ImageTextData, path: Path) -> None:
    row_of = {name: row for row, name in enumerate(data.image_ids)}
    originals = data.images(torch.tensor([row_of[pair.source] for pair in pairs]))
    size = originals.shape[-1]
    image_grid([("of the set", originals), ("new", torch.stack([_pixels(pair, size) for pair in pairs]))], path)


def _pixels(pair: StoredPair, size: int) -> torch.Tensor:
    assert pair.image is not None
    image = Image.open(io.BytesIO(pair.image.read())).convert("RGB").resize((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
