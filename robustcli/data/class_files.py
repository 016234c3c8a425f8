"""Sets of labelled images in files: decoding, checks and fingerprint, common to all readers of classes.

Shapes: B batch, S image size, N images.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustcli.data.base import rows_of
from robustcli.data.classes import ImageClassData
from robustcli.data.decode import FITS, Fit
from robustcli.data.faults import Faults
from robustcli.data.files import check_fingerprint, check_positive, decoded, other_splits, present
from robustcli.data.overlap import in_two_classes, overlaps
from robustcli.data.sources import Record
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed


@dataclass(frozen=True)
class ClassReading:
    """Result of a reader: the records of one split in their order, and the class of each.

    Attributes:
        labels: id of an image -> place in ``classes``; None: an id begins with the name of its class, ``cat/1.png``.
        read: records of any split, or a `UserError`, see `other_splits`; None: the splits are published ones, whose
            pictures need no comparison.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    faults: Faults
    labels: Mapping[str, int] | None = None
    read: Callable[[str, Faults], Sequence[Record]] | None = None


class FileClasses(ImageClassData):
    """Images (B,3,S,S) from files, decoded and checked when the set is made; batches are copies out of a memory map.

    Args:
        reading: records and labels of one split.
        image_size: S in pixels.
        fit: how an image becomes square, see `decode`.
        limit: the first so many records; None: all.
        fingerprint: that the set must have, or one for each split; None: any.

    Raises:
        UserError: a missing or bad image, no usable image, a class that lost all of them, another fingerprint.
    """

    def __init__(
        self,
        reading: ClassReading,
        *,
        image_size: int,
        fit: Fit,
        limit: int | None,
        fingerprint: str | Mapping[str, str] | None,
    ) -> None:
        self.name, self.split, self.classes, self.image_size = reading.name, reading.split, reading.classes, image_size
        faults, found = reading.faults, reading.records[:limit]
        places = {name: place for place, name in enumerate(self.classes)}
        labels = reading.labels or {each.image_id: places[each.image_id.split("/")[0]] for each in found}
        records, store = decoded(present(found, faults, None), image_size, faults, fit=fit)
        if not records:
            raise UserError(f"the split {self.split!r} of {self.name} has no usable image left: {faults.first}.")
        before, after = ({labels[each.image_id] for each in kept} for kept in (found, records))
        self._check_none_lost(before, after, faults)
        self.skipped = faults.count
        self.image_ids = [record.image_id for record in records]
        self.labels = torch.tensor([labels[name] for name in self.image_ids])
        self.fingerprint = self._content(store.hashes, with_labels=reading.labels is not None)
        self._pixels = store.pixels
        others = other_splits(self.split, reading.read) if reading.read else {}
        self.notes = [
            *faults.notes(),
            *store.notes,
            *overlaps(self.split, [record.blob for record in records], others),
            *in_two_classes(store.hashes, self.labels.tolist(), self.classes),
        ]
        check_fingerprint(self, fingerprint, limit)

    def images(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self._pixels[rows_of(indices, len(self)).numpy()])).float().div_(255)

    def _check_none_lost(self, before: set[int], after: set[int], faults: Faults) -> None:
        """`UserError` for a class all of whose images were skipped: the others alone would be an easier task."""
        if lost := [self.classes[place] for place in sorted(before - after)]:
            raise UserError(
                f"no image of the class {lost[0]!r}{and_more(lost)} can be read, for example {faults.first}: mend "
                "them, or, where dataset.classes lists the classes, leave it out and move its folder away."
            )

    def _content(self, hashes: Sequence[str], *, with_labels: bool) -> str:
        """sha256 (hex) of the class list, names and contents in their order; of neither the folder nor the cache."""
        digest = hashlib.sha256(json.dumps(list(self.classes)).encode())
        for name, content in zip(self.image_ids, hashes, strict=True):
            digest.update(json.dumps([name, content]).encode() + b"\n")
        if with_labels:  # else they follow from names and classes
            digest.update(json.dumps(self.labels.tolist()).encode())
        return digest.hexdigest()


def check_settings(image_size: int, limit: int | None, fit: str) -> None:
    """Raise `UserError` for a size or limit below 1, or an unknown way to become square."""
    check_positive(image_size=image_size, limit=limit)
    if fit not in FITS:
        raise UserError(f"dataset.fit is {fit!r}: choose one of {', '.join(FITS)}.")


def shuffled(records: Sequence[Record]) -> list[Record]:
    """The records in a fixed order of their names' hashes, so that the first so many are of all classes."""
    return sorted(records, key=lambda record: derive_seed("order", record.image_id))


def check_count(name: str, split: str, where: object, found: int, counts: Mapping[str, int], otherwise: str) -> None:
    """`UserError` for part of an archive, or another one, before the first image is decoded.

    Args:
        otherwise: the setting that stops this check.
    """
    expected = counts.get(split)
    if expected is not None and found != expected:
        raise UserError(
            f"{where} has {found} images, but the split {split!r} of {name} has {expected}: unpack the archive anew, "
            f"or set {otherwise}."
        )


def and_more(names: Sequence[str]) -> str:
    """`` and 2 more`` after the first of three names; empty for one."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
