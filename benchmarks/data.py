"""Whether one waits for data: what making and reading a set costs, against the training step that uses it.

All is CPU time per image. The trainer reads the next batch in a thread of its own while a step computes, so one waits
only where reading costs more than the step; the ratios here are stricter, they count reading as if nothing overlapped.
"""

import csv
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Row, cpu_seconds, cpu_seconds_once
from benchmarks.setting import Setting
from robustcli.data import CaptionTable, ImageTextData, Scenes
from robustcli.data.sampling import PairSampler

SHARE = 0.05  # of a step
_ROUNDS = 8
_PHOTO = (500, 375)  # pixels, as in Flickr8k
_SIDE = 64  # pixels that photographs are read at; the step is that of `tiny` on scenes of this size


def run(*, quick: bool = False) -> list[Row]:
    """Scenes and a folder of JPEG files: at the first use, from the cache, and batch by batch."""
    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder) / "cache"):
        return _scenes(quick=quick) + _photographs(Path(folder), quick=quick)


@contextmanager
def _cache(place: Path) -> Iterator[None]:
    before = os.environ.get("ROBUSTCLI_CACHE")
    os.environ["ROBUSTCLI_CACHE"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("ROBUSTCLI_CACHE")
        if before is not None:
            os.environ["ROBUSTCLI_CACHE"] = before


def _scenes(*, quick: bool) -> list[Row]:
    count, batch_size = (64, 16) if quick else (20_000, 128)

    def make() -> Scenes:
        return Scenes(split="train", train=count, val=1, test=1)

    first = cpu_seconds_once(make)
    again = cpu_seconds_once(make)
    setting = Setting.of(batches=_ROUNDS, batch_size=batch_size)
    return _rows(f"{count:,} scenes", first / count, again / count, setting, make(), quick=quick)


def _photographs(folder: Path, *, quick: bool) -> list[Row]:
    count, batch_size = (16, 8) if quick else (512, 128)
    _write_photographs(folder, count)

    def read() -> CaptionTable:
        return CaptionTable(folder / "captions_train.csv", folder, split="train", image_size=_SIDE)

    first = cpu_seconds_once(read)
    again = cpu_seconds_once(read)
    sizes = (f"dataset.size={_SIDE}", f"model.image_size={_SIDE}", "model.patch_size=16")
    setting = Setting.of(batches=_ROUNDS, batch_size=batch_size, overrides=sizes)
    return _rows(f"{count:,} JPEG files", first / count, again / count, setting, read(), quick=quick)


def _rows(name: str, first: float, again: float, setting: Setting, data: ImageTextData, *, quick: bool) -> list[Row]:
    """Rows of one set; ``first`` and ``again`` are the CPU seconds an image of making it and of opening it again."""
    size = len(setting.batches[0][1])
    sampler, numbers = PairSampler(data, batch_size=size, seed=0), itertools.count()

    def batch() -> None:
        data.images(sampler(next(numbers) % sampler.batches_per_epoch).image_ids)

    cpu = cpu_seconds(
        {"mat": setting.step("mat"), "clean": setting.step("clean"), "batch": batch},
        repeats=1 if quick else _ROUNDS - 1,
    )
    step, clean, reading = (cpu[side] / size for side in ("mat", "clean", "batch"))
    return [
        Row(what=f"{name}, made", against="MAT, one epoch", ours=first, other=step, note=_speed(first)),
        Row(what=f"{name}, opened again", against="MAT, one epoch", ours=again, other=step, note=_speed(again)),
        Row(what=f"{name}, a batch", against="MAT step", ours=reading, other=step, at_most=SHARE, note=_speed(reading)),
        Row(what=f"{name}, a batch", against="clean step", ours=reading, other=clean, at_most=SHARE),
    ]


def _speed(seconds: float) -> str:
    return f"{1 / seconds:,.0f} images/s"


def _write_photographs(folder: Path, count: int) -> None:
    """Smooth pictures with some grain, which JPEG takes as long over as over photographs, and a caption of each."""
    generator = np.random.default_rng(0)
    with (folder / "captions_train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(_PHOTO)
            grain = generator.integers(-12, 13, (_PHOTO[1], _PHOTO[0], 3))
            pixels = (np.asarray(coarse, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
            table.writerow([f"{number}.jpg", f"photograph number {number}"])
