"""Sentences with one colour each, from the captions of scenes, as a table and with pictures of the colours."""

import csv
from pathlib import Path

import torch
from PIL import Image

from robustcli.data import Scenes

COLOURS = ("red", "green", "blue", "yellow", "purple")
SIZES = {"train": 48, "val": 24, "test": 24}


def sentences() -> list[tuple[str, str]]:
    """Sentences and their colours, of the test split."""
    captions = Scenes(split="test", **SIZES).captions
    found = [(caption, [colour for colour in COLOURS if colour in caption.split()]) for caption in captions]
    return [(caption, named[0]) for caption, named in found if len(named) == 1]


def write_table(path: Path, count: int | None = None) -> Path:
    """A CSV of the first so many sentences, in the columns ``text`` and ``label``."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sentences()[:count]])
    return path


def write_pictures(folder: Path, each: int = 2) -> Path:
    """``each`` pictures of each colour in a folder of its name."""
    data = Scenes(split="train", **SIZES)
    for caption, row in zip(data.captions, data.owner.tolist(), strict=True):
        named = [colour for colour in COLOURS if colour in caption.split()]
        place = folder / named[0] if len(named) == 1 and len(caption.split()) < 7 else None
        if place is not None and len(list(place.glob("*"))) < each:
            place.mkdir(parents=True, exist_ok=True)
            pixels = data.images(torch.tensor([row]))[0].permute(1, 2, 0).mul(255).round().byte().numpy()
            Image.fromarray(pixels).save(place / f"{row}.png")
    return folder
