"""``digits``: the 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey."""

from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcli.data.class_arrays import fingerprint_of
from robustcli.data.classes import PixelClasses
from robustcli.data.files import check_fingerprint
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

CLASSES = tuple("0123456789")
_SHARES = {"test": (0.0, 0.3), "val": (0.3, 0.4), "train": (0.4, 1.0)}  # of each class, in its shuffled order
_WHITE = 16.0


class Digits(PixelClasses):
    """scikit-learn's copy of the UCI test set of handwritten digits (Alpaydin and Kaynak 1998), (B,1,8,8).

    Pixels are the stored whole numbers 0 to 16, divided by 16. 30 % of each class are test, 10 % val, 60 % train.

    Args:
        split: ``train``, ``val`` or ``test``.
        seed: of the split.
        fingerprint: that the set must have, or one for each split; None: any.

    Raises:
        UserError: another split, or another fingerprint.
    """

    def __init__(self, *, split: str, seed: int = 0, fingerprint: str | Mapping[str, str] | None = None) -> None:
        if split not in _SHARES:
            raise UserError(f"dataset digits has no split {split!r}: choose one of {', '.join(_SHARES)}.")
        stored = torch.from_numpy(np.loadtxt(_file(), delimiter=",", dtype=np.int64))  # 64 pixels, then the digit
        targets = stored[:, -1]
        rows = _rows(targets, split, seed)
        pixels = stored[rows, :-1].to(torch.uint8).view(-1, 1, 8, 8)
        names = [f"digit-{row:04d}" for row in rows.tolist()]
        super().__init__(
            "digits",
            split,
            pixels=pixels,
            scale=_WHITE,
            labels=targets[rows],
            classes=CLASSES,
            image_ids=names,
            fingerprint=fingerprint_of(pixels.numpy(), targets[rows].numpy(), CLASSES, names),
        )
        check_fingerprint(self, fingerprint, None)


def _file() -> Path:
    """The CSV in scikit-learn, whose own reader takes a second of imports in every process."""
    return Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))


def _rows(targets: Tensor, split: str, seed: int) -> Tensor:
    """The places of a split's images, shuffled; each class is cut at the same shares."""
    low, high = _SHARES[split]
    parts = []
    for label in range(len(CLASSES)):
        own = torch.nonzero(targets == label).flatten()
        own = own[torch.randperm(len(own), generator=generator(seed, "digits", label))]
        parts.append(own[round(low * len(own)) : round(high * len(own))])
    rows = torch.cat(parts)
    return rows[torch.randperm(len(rows), generator=generator(seed, "digits", split))]
