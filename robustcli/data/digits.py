"""``digits``: the 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey."""

from collections.abc import Mapping

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
        from sklearn.datasets import load_digits  # a second of imports, which no other set needs

        stored = load_digits()
        targets = torch.from_numpy(stored.target.astype(np.int64))
        rows = _rows(targets, split, seed)
        pixels = torch.from_numpy(stored.images.astype(np.uint8))[rows].unsqueeze(1)
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
