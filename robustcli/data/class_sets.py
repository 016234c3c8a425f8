"""CIFAR-10, CIFAR-100 and MNIST in the layouts that torchvision downloads, read by its own readers.

Shapes: B batch, N images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustcli.data.class_arrays import fingerprint_of
from robustcli.data.classes import PixelClasses, held_out
from robustcli.data.files import check_fingerprint, check_positive
from robustcli.data.sources import SPLITS
from robustcli.utils.errors import UserError


class _FromTorchvision(PixelClasses):
    """A set of torchvision's in memory; it knows train and test, a share of train is val.

    torchvision checks the files against known sums before it reads them, so no foreign pickle is opened.
    """

    reader = ""

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        val_share: float = 0.1,
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        if split not in SPLITS:
            raise UserError(f"dataset has no split {split!r}: choose one of {', '.join(SPLITS)}.")
        stored = _read(self.reader, Path(root).expanduser(), train=split != "test")
        name = self.reader.lower()
        ids = np.array([f"{name}-{'test' if split == 'test' else 'train'}-{i:05d}" for i in range(len(stored.data))])
        rows = np.arange(len(ids))
        if split != "test":
            rows = rows[held_out(ids.tolist(), val_share).numpy() == (split == "val")]
        rows = rows[:limit]
        if not len(rows):
            raise UserError(f"the split {split!r} of {name} is empty: set dataset.val_share above 0.")
        pixels, labels = _pixels(stored.data)[rows], np.asarray(stored.targets, dtype=np.int64)[rows]
        classes = _class_names(stored)
        super().__init__(
            name,
            split,
            pixels=torch.from_numpy(pixels),
            scale=255.0,
            labels=torch.from_numpy(labels),
            classes=classes,
            image_ids=ids[rows].tolist(),
            fingerprint=fingerprint_of(pixels, labels, classes, ids[rows].tolist()),
        )
        check_fingerprint(self, fingerprint, limit)


class Cifar10(_FromTorchvision):
    """CIFAR-10 (Krizhevsky 2009): images (B,3,32,32) of ten classes, 50,000 to train and 10,000 to test.

    Args:
        root: folder that holds ``cifar-10-batches-py``.
        split: ``train``, ``val`` or ``test``.
        val_share: share of the training images that is ``val``, by a hash of their numbers.
        fingerprint: that the set must have, or one for each split; None: any.
        limit: the first so many images; None: all.

    Raises:
        UserError: the files are not there, or not those that torchvision knows.
    """

    reader = "CIFAR10"


class Cifar100(_FromTorchvision):
    """CIFAR-100 (Krizhevsky 2009): images (B,3,32,32) of a hundred classes; ``root`` holds ``cifar-100-python``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "CIFAR100"


class Mnist(_FromTorchvision):
    """MNIST (LeCun et al. 1998): digits (B,1,28,28), 60,000 to train and 10,000 to test; ``root`` holds ``MNIST/raw``.

    Arguments and errors are those of `Cifar10`.
    """

    reader = "MNIST"


def _read(reader: str, root: Path, *, train: bool) -> Any:
    from torchvision import datasets

    try:
        return getattr(datasets, reader)(str(root), train=train, download=False)
    except (RuntimeError, OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"dataset.root is {root}, where torchvision finds no whole {reader} ({line}): download it once, "
            f"`python -c \"from torchvision.datasets import {reader}; {reader}('{root}', download=True)\"`, or set "
            "dataset.root to where it is."
        ) from error


def _pixels(data: Any) -> NDArray[np.uint8]:
    """(N,C,H,W) of the readers' (N,H,W,3) arrays or (N,H,W) tensors."""
    array = np.asarray(data)
    return np.ascontiguousarray(array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2))


def _class_names(stored: Any) -> tuple[str, ...]:
    """MNIST's reader calls its classes ``0 - zero``; they are the digits here, as in the other sets of digits."""
    return tuple(str(name).split(" - ")[0] for name in stored.classes)
