"""Cache of the rendered images of scenes, and the limits of their settings."""

import hashlib
import logging
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.render import render_scenes
from robustcli.data.scenes.world import SPLITS, World
from robustcli.utils import locks
from robustcli.utils.cache import cache_directory, remove_leftovers, temporary_folder, unreadable, writing
from robustcli.utils.errors import UserError

RECIPE = "scenes-1"  # raise it when a recipe would give other bytes
_MOST = 100_000

log = logging.getLogger(__name__)


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
    path = cache_directory("scenes") / f"{key}.npz"
    if (images := _read(path)) is None:
        # The jobs of a sweep ask for the same images at the same time: one renders, the others wait for it.
        with writing(path.parent), locks.exclusive(path.with_suffix(".lock")):
            if (images := _read(path)) is None:
                remove_leftovers(path)
                images = render_scenes(world, size, stream, noise=noise, contrast=contrast)
                _write(path, images)
    return images


def _write(path: Path, images: NDArray[np.uint8]) -> None:
    """Write a file whole or not at all; what a killed writer leaves bears the name of its machine and is removed."""
    folder = temporary_folder(path)
    try:
        np.savez(folder / path.name, images=images)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> NDArray[np.uint8] | None:
    """The images in a file; None where there is none, or one that is not as it was written: a zip has a CRC-32."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            images: NDArray[np.uint8] = stored["images"]
            return images
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise unreadable(path) from error
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        log.warning("the images in %s are damaged: they are rendered anew", path)
        return None
