"""Cache of the rendered images of scenes, and the limits of their settings."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.render import render_scenes
from robustcli.data.scenes.world import SPLITS, World
from robustcli.utils import files, locks
from robustcli.utils.cache import cache_directory
from robustcli.utils.errors import UserError

RECIPE = "scenes-1"  # raise it when a recipe would give other bytes
_MOST = 100_000


def split_count(name: str, split: str, **counts: int) -> int:
    """Number of images of a split; `UserError` for one that the set does not have."""
    if split not in counts:
        raise UserError(f"dataset {name} has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return counts[split]


def check_image_settings(split: str, *, size: int, contrast: float, count: int) -> None:
    """`UserError` unless size is 32 or 64, contrast in (0,1] and the number of images from 1 to 100,000."""
    if size not in (32, 64):
        raise UserError(f"dataset.size is {size}: scenes are rendered at 32 or 64 pixels.")
    if not 0 < contrast <= 1:
        raise UserError(f"dataset.contrast is {contrast}: it is a share of the full contrast, above 0 and at most 1.")
    if not 1 <= count <= _MOST:
        raise UserError(f"dataset.{split} is {count}: scenes has between 1 and {_MOST} images a split.")


def cached_images(
    world: World, size: int, stream: int, *, noise: int, contrast: float, recipe: str = RECIPE
) -> NDArray[np.uint8]:
    """Images (N,3,S,S) uint8 of ``world``, from the cache or rendered into it.

    Args:
        size: S, 32 or 64.
        noise, contrast: see `render_scenes`.
        stream: seed of the world and of its images.
        recipe: version of the draw of the world from ``stream``; part of the key.
    """
    key = hashlib.sha256(repr((recipe, stream, len(world), size, noise, contrast)).encode()).hexdigest()[:24]
    path = cache_directory("scenes") / f"{key}.npy"
    if not path.exists():
        # The jobs of a sweep ask for the same images at the same time: one renders, the others wait for it.
        with locks.exclusive(path.with_suffix(".lock")):
            if not path.exists():
                with files.atomic(path) as temporary:
                    np.save(
                        temporary,
                        render_scenes(world, size, stream, noise=noise, contrast=contrast),
                        allow_pickle=False,
                    )
    return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
