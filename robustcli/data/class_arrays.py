"""Images and labels in one ``.npz`` file.

Shapes: N images, C channels, H height, W width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustcli.data.classes import PixelClasses, class_list
from robustcli.data.files import check_fingerprint, check_positive
from robustcli.data.overlap import in_two_classes, sentence
from robustcli.data.sources import SPLITS, existing
from robustcli.utils.errors import UserError

_LAYOUTS = ("NHW", "NHWC", "NCHW")
_Array = NDArray[Any]


class ClassArrays(PixelClasses):
    """Images (B,C,H,W) of an ``.npz``, C 1 or 3.

    Args:
        file: the path; ``{split}`` in it, or in a key, stands for the split.
        split: ``train``, ``val`` or ``test``.
        classes: the names in the order of the labels: a list, a file, or a number for ``0``, ``1``, ...
        images, labels: keys of the arrays. Images are uint8, or floats in [0,1]; labels are whole numbers from 0.
        ids: key of the images' names, which must be unique; None: their places in the file.
        layout: ``NHW``, ``NHWC`` or ``NCHW``; None: inferred from the shape.
        holds: the split that the file is of, where neither its name nor a key has ``{split}``.
        fingerprint: that the set must have, or one for each split; None: any.
        limit: the first so many images; None: all.

    Raises:
        UserError: a file, key, shape, type, pixel or label that does not fit; nothing is unpickled.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        split: str,
        classes: Sequence[str] | str | Path | int | None = None,
        images: str = "images",
        labels: str = "labels",
        ids: str | None = None,
        layout: str | None = None,
        holds: str | None = None,
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        listed = class_list(classes, "dataset.classes", "give a list, a file, or the number of classes.")
        path, keys = _placed(str(file), [images, labels, *([ids] if ids else [])], split, holds)
        arrays = [array[:limit] for array in _read(path, keys)]
        pixels = _pixels(arrays[0], layout, f"{path}, {keys[0]}")
        targets = _labels(arrays[1], len(pixels), listed, f"{path}, {keys[1]}")
        names = _names(arrays[2], len(pixels), f"{path}, {keys[2]}") if ids else [str(i) for i in range(len(pixels))]
        super().__init__(
            path.stem,
            split,
            pixels=torch.from_numpy(pixels),
            scale=255.0 if pixels.dtype == np.uint8 else 1.0,
            labels=torch.from_numpy(targets),
            classes=listed,
            image_ids=names,
            fingerprint=fingerprint_of(pixels, targets, listed, names),
        )
        repeated = {}
        for other in SPLITS:
            with suppress(UserError):  # not there
                if other != split:
                    place, found = _placed(str(file), [images], other, holds)
                    repeated[other] = _repeated(pixels, _pixels(_read(place, found)[0], layout, str(place)))
        twice = in_two_classes(_hashes(pixels), self.labels.tolist(), self.classes)
        self.notes = [*_all_dark(pixels, f"{path}, {keys[0]}"), *sentence(split, len(pixels), repeated), *twice]
        check_fingerprint(self, fingerprint, limit)


def fingerprint_of(pixels: _Array, labels: _Array, classes: Sequence[str], image_ids: Sequence[str]) -> str:
    """sha256 (hex) of all that a set in memory holds: shape, type and bytes of pixels, labels, classes, names."""
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str, list(classes), list(image_ids))).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(labels.astype("<i8")).data)
    return digest.hexdigest()


def _placed(file: str, keys: list[str], split: str, holds: str | None) -> tuple[Path, list[str]]:
    """The file and the keys of one split; `UserError` where neither ``{split}`` nor ``holds`` names the split."""
    if split not in SPLITS:
        raise UserError(f"dataset has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if holds is None and not any("{split}" in text for text in (file, *keys)):
        raise UserError(
            f"dataset.file is {file!r} and nothing says which split it is of: set dataset.holds, for example to test, "
            "or write {split} into the name of the file or of the keys."
        )
    if holds is not None and holds != split:
        raise UserError(
            f"dataset.file is {file!r} and holds the split {holds!r}, but {split!r} is asked for: give a file for each "
            "split, with {split} in the name of the file or of the keys in place of dataset.holds, such as "
            "dataset.file='data_{split}.npz'."
        )
    path = Path(file.replace("{split}", split)).expanduser()
    return existing(path, "dataset.file", None), [key.replace("{split}", split) for key in keys]


def _read(path: Path, keys: Sequence[str]) -> list[_Array]:
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise UserError(f"dataset.file is {path}, which holds one array: expected an .npz of several.")
            missing = [key for key in keys if key not in stored]
            if missing:
                raise UserError(
                    f"{path} has no array {missing[0]!r}, only {', '.join(stored)}: set dataset.images, dataset.labels "
                    "or dataset.ids."
                )
            arrays = [stored[key] for key in keys]
    except UserError:
        raise
    except Exception as error:  # the parsers of zip and npy raise whatever they meet in damaged bytes
        raise UserError(f"{path} cannot be read ({error}): it is damaged, no .npz, or holds Python objects.") from None
    for key, array in zip(keys, arrays, strict=True):
        if array.ndim == 0:
            raise UserError(f"{path}, {key} is a single {array.dtype}: expected an array with an entry for each image.")
    return arrays


def _pixels(array: _Array, layout: str | None, where: str) -> _Array:
    """(N,C,H,W), uint8 or float32 in [0,1]."""
    chosen = layout or _layout(array.shape, where)
    if chosen not in _LAYOUTS or len(chosen) != array.ndim:
        raise UserError(
            f"dataset.layout is {chosen}, but {where} has shape {array.shape}: choose {', '.join(_LAYOUTS)}."
        )
    if chosen == "NHW":
        array = array[:, None]
    elif chosen == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in (1, 3) or not array.size:
        raise UserError(f"{where} has {array.shape[1]} channels and {len(array)} images: expected 1 or 3, and some.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f" or not ((array >= 0) & (array <= 1)).all():
        raise UserError(f"{where} is {array.dtype}: expected uint8, or floats in [0, 1] without NaN.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _repeated(pixels: _Array, others: _Array) -> int:
    """Number of images that stand in ``others`` too, pixel by pixel."""
    known = set(_hashes(others))
    return sum(digest in known for digest in _hashes(pixels))


def _hashes(pixels: _Array) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in pixels]


def _all_dark(pixels: _Array, where: str) -> list[str]:
    """A sentence on bytes of 0 and 1 alone, which are masks that someone did not scale, or pictures in [0, 1]."""
    if pixels.dtype != np.uint8 or pixels.max() > 1:
        return []
    return [f"No byte of {where} is above 1: read as 0 to 1/255, nearly black; multiply them by 255 if 1 is white."]


def _layout(shape: tuple[int, ...], where: str) -> str:
    if len(shape) == 3:
        return "NHW"
    fits = [] if len(shape) != 4 else [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] in (1, 3)]
    if len(fits) == 1:
        return fits[0]
    raise UserError(
        f"{where} has shape {shape}, which does not tell its layout: set dataset.layout to one of {_LAYOUTS}."
    )


def _labels(array: _Array, count: int, classes: Sequence[str], where: str) -> NDArray[np.int64]:
    if array.shape not in ((count,), (count, 1)) or array.dtype.kind not in "iu":
        raise UserError(
            f"{where} is {array.dtype} of shape {array.shape}: expected one whole number for each of {count}."
        )
    labels = array.reshape(count).astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{where} has labels from {labels.min()} to {labels.max()}, but dataset.classes has {len(classes)} names."
        )
    return labels


def _names(array: _Array, count: int, where: str) -> list[str]:
    names = [str(value) for value in array.reshape(-1).tolist()]
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"{where} has {len(set(names))} different names for {count} images: expected one each.")
    return names
