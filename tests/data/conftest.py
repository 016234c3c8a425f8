"""Small folders of real image files, and a cache of their own for each test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SPLITS = ("train", "train", "train", "restval", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def entry(number: int, split: str) -> dict[str, Any]:
    sentences = [{"raw": f"caption {caption} of image {number}"} for caption in range(1 + number % 5)]
    return {"filename": f"{number}.jpg", "filepath": "pictures", "split": split, "sentences": sentences}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with six pictures and their Karpathy annotations: 4 train (one restval), 1 val, 1 test."""
    (tmp_path / "pictures").mkdir()
    for number in range(len(SPLITS)):
        picture(number).save(tmp_path / "pictures" / f"{number}.jpg", quality=95)
    content = {"dataset": "small", "images": [entry(number, split) for number, split in enumerate(SPLITS)]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Callable[[Callable[[list[Any]], object]], None]:
    """Change the annotations: ``edit(lambda images: images.pop())``."""

    def apply(change: Callable[[list[Any]], object]) -> None:
        content = json.loads((folder / "dataset.json").read_text())
        change(content["images"])
        (folder / "dataset.json").write_text(json.dumps(content))

    return apply
