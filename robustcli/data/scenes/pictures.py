"""The pictures of scenes, rendered once and kept; and what their recipe may ask for."""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.render import render
from robustcli.data.scenes.world import SPLITS, World
from robustcli.utils.cache import cache_directory
from robustcli.utils.errors import UserError

RECIPE = "scenes-1"  # raise it when a recipe would give other bytes
_MOST = 100_000


def split_count(name: str, split: str, **counts: int) -> int:
    """How many images a split has; `UserError` for one that the set does not know."""
    if split not in counts:
        raise UserError(f"dataset {name} has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return counts[split]


def check_pictures(split: str, *, size: int, contrast: float, count: int) -> None:
    """Raise `UserError` for what cannot be rendered."""
    if size not in (32, 64):
        raise UserError(f"dataset.size is {size}: scenes are rendered at 32 or 64 pixels.")
    if not 0 < contrast <= 1:
        raise UserError(f"dataset.contrast is {contrast}: it is a share of the full contrast, above 0 and at most 1.")
    if not 1 <= count <= _MOST:
        raise UserError(f"dataset.{split} is {count}: scenes has between 1 and {_MOST} images a split.")


def rendered(
    world: World, size: int, stream: int, *, noise: int, contrast: float, recipe: str = RECIPE
) -> NDArray[np.uint8]:
    """Pictures (N,3,S,S) of ``world``, from the cache if they are there.

    Args:
        size: S.
        stream: seed of the world and of its pictures.
        recipe: how the world was drawn from ``stream``.
    """
    key = hashlib.sha256(repr((recipe, stream, len(world), size, noise, contrast)).encode()).hexdigest()[:24]
    path = cache_directory("scenes") / f"{key}.npy"
    if not path.exists():
        pixels = render(world, size, stream, noise=noise, contrast=contrast)
        _save(path, pixels)
        return pixels
    return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    np.save(temporary, pixels, allow_pickle=False)
    temporary.replace(path)  # two processes that render the same recipe write the same bytes
