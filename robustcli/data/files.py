"""Image-text sets in files: decoding, checks and fingerprint, common to all formats once their records are read.

Shapes: B batch, S image size, N images, M captions.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from robustcli.data.base import ImageTextData, rows_of
from robustcli.data.decode import Fit
from robustcli.data.faults import Faults
from robustcli.data.overlap import overlaps
from robustcli.data.pixels import PixelStore, open_store
from robustcli.data.positives import Positives, further_positives
from robustcli.data.sources import SPLITS, Blob, Record
from robustcli.data.walks import on_disk
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import one_of
from robustcli.utils.relevance import Relevance

SameText = Literal["distinct", "match"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """Result of a reader of a format: the records of one split, and the faults, which count the entries left out.

    ``read`` gives the records of any split, or a `UserError`; see `other_splits`.
    """

    name: str
    split: str
    records: Sequence[Record]
    faults: Faults
    read: Callable[[str, Faults], Sequence[Record]]


class Fingerprinted(Protocol):
    """Any data set, as far as a pinned fingerprint needs it."""

    name: str
    split: str
    fingerprint: str


class FileSet(ImageTextData):
    """Images (B,3,S,S) from files, decoded and checked when the set is made, so before any training starts.

    Args:
        reading: records of one split.
        image_size: S in pixels.
        same_text: ``distinct``: a caption is true of the image that it was written for, as the literature counts;
            ``match``: it is also true of every image with a caption of the same text.
        limit: the first so many records; None: all.
        fingerprint: that the set must have, or one for each split; None: any.
        origin: source of the files, for the message where one is missing.
        positives, positives_threshold: files of further positives, see `robustcli.data.positives`, and the least score
            of one where a file has scores.

    Raises:
        UserError: an unknown ``same_text``, a size or limit below 1, a missing or bad image, no usable image, another
            fingerprint.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        image_size: int,
        same_text: SameText = "distinct",
        limit: int | None = None,
        fingerprint: str | Mapping[str, str] | None = None,
        origin: str | None = None,
        positives: str | Sequence[str] | None = None,
        positives_threshold: float = 3.0,
    ) -> None:
        check_positive(image_size=image_size, limit=limit)
        one_of("same_text", same_text, get_args(SameText), node="dataset")
        records = present(reading.records[:limit], reading.faults, origin)
        self.name, self.split, self.image_size = reading.name, reading.split, image_size
        records, store = decoded(records, image_size, reading.faults)
        if not records:
            raise UserError(
                f"the split {self.split!r} of {self.name} has no usable image left: {reading.faults.first}."
            )
        self.skipped = reading.faults.count
        self.image_ids = [record.image_id for record in records]
        self.captions = [caption for record in records for caption in record.captions]
        counts = torch.tensor([len(record.captions) for record in records])
        self.owner = torch.repeat_interleave(torch.arange(len(records)), counts)
        self.text_decides = same_text == "match"
        self.fingerprint = _fingerprint(records, store.hashes)
        self._pixels = store.pixels
        self._positives: Positives | None = None
        if positives:
            self._positives = further_positives(positives, positives_threshold, records, self.split)
        self._images_of = self._true_images()
        others = other_splits(self.split, reading.read)
        self.notes = [
            *reading.faults.notes(),
            *store.notes,
            *overlaps(self.split, [record.blob for record in records], others),
            *([self._positives.note] if self._positives else []),
        ]
        check_fingerprint(self, fingerprint, limit)

    def images(self, indices: Tensor) -> Tensor:
        rows = rows_of(indices, len(self)).numpy()
        return torch.from_numpy(np.asarray(self._pixels[rows])).float().div_(255)

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return self.positives(images, captions).matrix()

    def positives(self, images: Tensor, captions: Tensor) -> Relevance:
        return self._images_of[captions].T[images]

    def provenance(self) -> dict[str, str | int]:
        positives = {"positives": self._positives.sha256} if self._positives else {}
        return super().provenance() | positives

    def _true_images(self) -> Relevance:
        """(M,N): the images that each caption is true of."""
        pairs = [torch.stack([torch.arange(len(self.owner)), self.owner])]
        if self.text_decides:
            number = {text: row for row, text in enumerate(dict.fromkeys(self.captions))}
            text = torch.tensor([number[caption] for caption in self.captions])
            images = Relevance.of_pairs(text, self.owner, (len(number), len(self)))[text]
            pairs.append(torch.stack([images.queries, images.items]))
        for caption, shown in self._positives.images.items() if self._positives else ():
            pairs.append(torch.stack([torch.full_like(shown, caption), shown]))
        captions, images_of = torch.cat(pairs, dim=1)
        return Relevance.of_pairs(captions, images_of, (len(self.owner), len(self)))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, split={self.split!r}, images={len(self)},"
            f" captions={len(self.captions)}, image_size={self.image_size}, skipped={self.skipped})"
        )


def check_fingerprint(data: Fingerprinted, expected: str | Mapping[str, str] | None, limit: int | None) -> None:
    """Raise `UserError` unless ``data`` is the set that was pinned: by one fingerprint, or by one for each split."""
    wanted = expected if expected is None or isinstance(expected, str) else expected.get(data.split)
    if wanted is None or wanted == data.fingerprint:
        return
    if limit is not None:
        log.warning("dataset.fingerprint is not checked: dataset.limit=%d makes it another set", limit)
        return
    raise UserError(
        f"dataset.fingerprint is {wanted}, but the split {data.split!r} of {data.name} has {data.fingerprint}: the"
        " files are not those that were pinned; restore them, or set dataset.fingerprint to null or the new value."
    )


def check_positive(**sizes: int | None) -> None:
    """Raise `UserError` for a size of the config below 1; None is no size."""
    for key, value in sizes.items():
        if value is not None and value < 1:
            raise UserError(f"dataset.{key} is {value}, expected at least 1.")


def other_splits(split: str, read: Callable[[str, Faults], Sequence[Record]]) -> dict[str, list[Blob]]:
    """Images of the other splits of a set, where it has them.

    Args:
        read: records of a split; a `UserError` means that it is not there.
    """
    found = {}
    for other in SPLITS:
        with suppress(UserError):
            if other != split:
                found[other] = [record.blob for record in read(other, Faults("skip", quiet=True))]
    return found


def present(records: Sequence[Record], faults: Faults, origin: str | None) -> list[Record]:
    """The records whose files exist; looked for before the first one is decoded, since that takes no time."""
    hint = f" (it comes from: {origin})" if origin else ""
    found = []
    for record in records:
        path = on_disk(record.blob.path)
        if path.is_file():
            found.append(replace(record, blob=replace(record.blob, path=path)))
        else:
            faults.report(f"{record.where}: the image {record.blob.path}", f"is missing{hint}")
    return found


def decoded(
    records: Sequence[Record], image_size: int, faults: Faults, *, fit: Fit = "crop"
) -> tuple[list[Record], PixelStore]:
    """The records whose images can be read, and the pixels of these; the others are faults."""
    blobs = [record.blob for record in records]
    store = open_store(blobs, image_size, stop_at_bad=faults.on_error == "raise", fit=fit)
    for position, problem in store.bad:
        record = records[position]
        faults.report(f"{record.where}: the image {record.blob.path}", problem)
    if faults.count:
        log.warning("%d entries were skipped", faults.count)
    return [records[position] for position in store.kept], store


def _fingerprint(records: Sequence[Record], hashes: Sequence[str]) -> str:
    """sha256 (hex) of names, captions and contents in their order; of neither the folder nor the cache."""
    digest = hashlib.sha256()
    for record, content in zip(records, hashes, strict=True):
        digest.update(json.dumps([record.image_id, content, list(record.captions)]).encode() + b"\n")
    return digest.hexdigest()
