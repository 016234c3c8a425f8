"""Cache of decoded images: a file is decoded and checked once, a batch is a copy out of a memory map afterwards.

Shapes: N images, S image size; the store is (N,3,S,S) uint8, 150 KB an image of 224.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from robustcli.data.decode import PIPELINE, BadImage, Decoded, Fit, decode, notes_of
from robustcli.data.sources import Blob
from robustcli.utils import locks
from robustcli.utils.cache import cache_directory, remove_leftovers, temporary_folder, unreadable, writing
from robustcli.utils.errors import UserError

BATCH = 256  # files decoded ahead of the writer: bounds the memory
SECONDS_BETWEEN_LINES = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PixelStore:
    """Pixels of the good images of a set.

    Attributes:
        pixels: (N,3,S,S) uint8, on disk.
        kept: N positions of these images among the blobs.
        hashes: N sha256 (hex) of the files' bytes.
        bad: position and fault of each unusable image.
        notes: sentences on what was done to the images, see `notes_of`.
    """

    pixels: NDArray[np.uint8]
    kept: Sequence[int]
    hashes: Sequence[str]
    bad: Sequence[tuple[int, str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class _Loaded:
    image: Decoded | None
    digest: str
    problem: str


def open_store(blobs: Sequence[Blob], image_size: int, *, stop_at_bad: bool, fit: Fit = "crop") -> PixelStore:
    """The store of ``blobs`` from the cache, or made now, which decodes and so checks every file.

    Args:
        blobs: existing files; the cache is keyed by their paths, sizes and times of change.
        image_size: S.
        stop_at_bad: stop at the first bad image, keep nothing and return no pixels.
        fit: how an image becomes square, see `decode`.

    Raises:
        UserError: no room on the disk, or the cache cannot be written.
    """
    place = cache_directory("images") / _key(blobs, image_size, fit)
    if (store := _read(place, image_size)) is None:
        # The jobs of a sweep ask for the same set at the same time: one decodes, the others wait for it.
        with writing(place.parent), locks.exclusive(place.with_suffix(".lock")):
            if (store := _read(place, image_size)) is None:
                remove_leftovers(place)
                if problem := _build(blobs, image_size, place, stop_at_bad=stop_at_bad, fit=fit):
                    return PixelStore(np.empty((0, 3, image_size, image_size), np.uint8), [], [], [problem])
                store = _read(place, image_size)
    if store is None:
        raise UserError(f"{place} cannot be read back as it was written: is the disk damaged? Remove it.")
    return store


def _read(place: Path, image_size: int) -> PixelStore | None:
    """The store in a folder; None where there is none, or one that is not as it was written.

    All pixels are read for it, at 1 to 2 GB/s once they are in memory, a fiftieth of the time of decoding: a file that
    lost its blocks would else give figures of other images.
    """
    if not place.is_dir():
        return None
    try:
        entries = json.loads((place / "entries.json").read_text())
        shape = (len(entries["kept"]), 3, image_size, image_size)
        # numpy maps no empty file, and of a longer one the first part.
        whole = (place / "pixels.u8").stat().st_size == math.prod(shape)
        pixels: Any = np.memmap(place / "pixels.u8", np.uint8, "r", shape=shape) if shape[0] else np.empty(shape, "u1")
        if whole and _sums(pixels) == entries["sums"]:
            bad = [(position, what) for position, what in entries["bad"]]
            return PixelStore(pixels, entries["kept"], entries["hashes"], bad, entries["notes"])
    except PermissionError as error:
        raise unreadable(place) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.info("%s: %s", place, error)
    log.warning("the decoded images in %s are damaged, or of an earlier version: they are made anew", place)
    return None


def _sums(pixels: NDArray[np.uint8]) -> list[int]:
    """CRC-32 of each `BATCH` of images."""
    return [
        zlib.crc32(np.ascontiguousarray(pixels[start : start + BATCH]).data) for start in range(0, len(pixels), BATCH)
    ]


def _key(blobs: Sequence[Blob], image_size: int, fit: Fit) -> str:
    # Pillow's version is part of the key: its resampling and its decoders decide pixels.
    way = "" if fit == "crop" else f" {fit}"
    digest = hashlib.sha256(f"{PIPELINE} {PIL.__version__} {image_size}{way}\n".encode())
    # One stat a file: all blobs of a tar shard share its path. Hashing contents would read the whole set.
    stats = {path: path.stat() for path in {blob.path for blob in blobs}}
    for blob in blobs:
        stat = stats[blob.path]
        entry = [str(blob.path.absolute()), blob.offset, blob.size, stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()[:32]


def _build(
    blobs: Sequence[Blob], image_size: int, place: Path, *, stop_at_bad: bool, fit: Fit
) -> tuple[int, str] | None:
    """Decode into a folder of another name and rename it, so that a killed run leaves no half of a store."""
    _check_space(place.parent, len(blobs) * 3 * image_size**2)
    unfinished = temporary_folder(place)
    try:
        problem = _write(blobs, image_size, unfinished, stop_at_bad=stop_at_bad, fit=fit)
        if problem is None:
            if place.is_dir() and _read(place, image_size) is None:
                shutil.rmtree(place)
            unfinished.rename(place)
        return problem
    except OSError:
        if not place.is_dir():  # else made meanwhile on a machine that the lock does not reach, which is as good
            raise
        return None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    blobs: Sequence[Blob], image_size: int, folder: Path, *, stop_at_bad: bool, fit: Fit
) -> tuple[int, str] | None:
    kept, sums, hashes = list[int](), list[int](), list[str]()
    bad, sizes, turned, composed = list[tuple[int, str]](), list[tuple[int, int]](), 0, 0
    with (folder / "pixels.u8").open("xb") as file:  # never through a link that another user of the cache put there
        for position, found in enumerate(_decoded(blobs, image_size, fit)):
            if found.image is None:
                bad.append((position, found.problem))
                if stop_at_bad:
                    return bad[0]
            else:
                file.write(found.image.pixels.data)
                sums = [*sums, 0] if len(kept) % BATCH == 0 else sums
                sums[-1] = zlib.crc32(found.image.pixels.data, sums[-1])
                kept.append(position)
                hashes.append(found.digest)
                sizes.append(found.image.size)
                turned += found.image.turned
                composed += found.image.composed
    notes = notes_of(sizes, image_size, fit, turned=turned, composed=composed)
    entries = {"kept": kept, "hashes": hashes, "bad": bad, "notes": notes, "sums": sums}
    with (folder / "entries.json").open("x") as listing:
        json.dump(entries, listing)
    return None


def _decoded(blobs: Sequence[Blob], image_size: int, fit: Fit) -> Iterator[_Loaded]:
    """In the order of ``blobs``; Pillow and sha256 release the interpreter's lock, so threads do."""
    said = time.monotonic()
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(blobs), BATCH):
            # ``map`` submits all that it is given at once: without batches a slow writer would let the pixels pile up.
            yield from pool.map(lambda blob: _load(blob, image_size, fit), blobs[start : start + BATCH])
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("checked and decoded %d of %d images", min(start + BATCH, len(blobs)), len(blobs))


def _load(blob: Blob, image_size: int, fit: Fit) -> _Loaded:
    try:
        data = blob.read()
        return _Loaded(decode(data, image_size, fit), hashlib.sha256(data).hexdigest(), "")
    except BadImage as problem:
        return _Loaded(None, "", str(problem))
    except OSError as problem:
        return _Loaded(None, "", f"cannot be read ({problem.strerror})")


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"decoded images need {needed / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB are free: set the"
            " environment variable ROBUSTCLI_CACHE to a folder with more room, or lower dataset.limit or"
            " dataset.image_size."
        )
