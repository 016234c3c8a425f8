"""A set with augmented pairs beside its own, and a set with fewer captions.

Shapes: B batch, S image size, N images, M captions, K items.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.data.augment.base import own_order
from robustcli.data.augment.shards import StoredPair, read_manifest, read_pairs
from robustcli.data.base import Derived, ImageTextData, Relation, rows_of
from robustcli.data.pixels import open_store
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least
from robustcli.utils.relevance import Relevance


class FewerCaptions(ImageTextData):
    """A set whose images keep only so many of their captions, in the order of `own_order`.

    Attributes:
        base: the set with all captions.
        rows: (M,) long, of the kept captions in that set.

    Args:
        number: captions of an image, 1 or more; an image with fewer keeps all.

    Raises:
        UserError: a number below 1.
    """

    def __init__(self, data: ImageTextData, number: int) -> None:
        at_least("captions_per_image", number, 1, node="dataset")
        self.base = data
        self.name, self.split, self.image_ids, self.synonyms = data.name, data.split, data.image_ids, data.synonyms
        self.skipped, self.notes = data.skipped, data.notes
        kept = [
            rows[own_order(name, len(rows))[:number]]
            for name, rows in zip(data.image_ids, data.captions_of(), strict=True)
        ]
        self.text_decides = data.text_decides
        self.rows = torch.cat(kept)
        self.captions = [data.captions[row] for row in self.rows.tolist()]
        self.owner = data.owner[self.rows]
        self.fingerprint = _digest(data.fingerprint, "captions", number)

    def images(self, indices: Tensor) -> Tensor:
        return self.base.images(indices)

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return self.base.relevance(images, self.rows[captions])

    def positives(self, images: Tensor, captions: Tensor) -> Relevance:
        return self.base.positives(images, self.rows[captions])

    def relation_with(self, images: Sequence[Derived], captions: Sequence[Derived]) -> Relation:
        rows = self.rows.tolist()
        further = [Derived(None if each.source is None else rows[each.source], each.facts) for each in captions]
        relation = self.base.relation_with(images, further)
        row = torch.cat([self.rows, len(self.base.captions) + torch.arange(len(captions))])
        return lambda shown, said: relation(shown, row[said])


class Augmented(ImageTextData):
    """A set and the pairs that ``robustcli augment`` made for it, for training; rows of the new follow its own.

    A new caption belongs to the image that it was made for, and a new image to the item of its source: captions of an
    item are never negatives of its images, whatever they say, but for new images whose content the set knows. Beyond
    that the relation of truth is that of the set, see `ImageTextData.relation_with`.

    Attributes:
        base: the set.
        stored: the augmented pairs, as they stand in the directories; the new images follow in this order.

    Args:
        data: the set.
        directories: of finished runs of ``robustcli augment`` on the very same set.
        number: augmented pairs of an image from each directory, the first so many; None: all.

    Raises:
        UserError: a directory that is none, is not finished, or was made for another set; a damaged image.
    """

    def __init__(self, data: ImageTextData, directories: Sequence[str | Path], *, number: int | None = None) -> None:
        self.base = data
        self.name, self.split, self.synonyms, self.skipped = data.name, data.split, data.synonyms, data.skipped
        places = [Path(each).expanduser().absolute() for each in directories]
        if number is not None:
            at_least("augmented_per_image", number, 1, node="dataset")
        stored = [pair for place in places for pair in _first(_checked(place, data), number)]
        self.stored = stored
        row_of = {name: row for row, name in enumerate(data.image_ids)}
        captions_of = data.captions_of()
        items = [row_of[pair.source] for pair in stored]

        images = [row for row, pair in enumerate(stored) if pair.image is not None]
        captions = [row for row, pair in enumerate(stored) if pair.caption is not None]
        caption_row = {row: len(data.captions) + place for place, row in enumerate(captions)}
        image_row = {row: len(data) + place for place, row in enumerate(images)}
        sources = [
            None if pair.source_caption is None else int(captions_of[item][pair.source_caption])
            for item, pair in zip(items, stored, strict=True)
        ]
        self.image_ids = [*data.image_ids, *(f"{stored[row].source}+{place}" for place, row in enumerate(images))]
        self.captions = [*data.captions, *(str(stored[row].caption) for row in captions)]
        # A new image of which the set knows what it shows is judged by that alone: most captions of its source may be
        # false of it.
        self._stands_for_item = torch.tensor([*[True] * len(data), *(stored[row].facts is None for row in images)])
        self.item = torch.tensor([*range(len(data)), *(items[row] for row in images)])
        self.owner = torch.cat([data.owner, torch.tensor([items[row] for row in captions], dtype=torch.long)])
        self._relation = data.relation_with(
            [Derived(items[row], stored[row].facts) for row in images],
            [Derived(sources[row], stored[row].facts) for row in captions],
        )
        self.text_decides = data.text_decides
        self._same_text = _same_text(self.captions, len(data.captions)) if data.text_decides else {}
        self._augmented = [
            [
                (image_row.get(row, items[row]), said)
                for said in _captions(caption_row.get(row, sources[row]), captions_of[items[row]])
            ]
            for row in range(len(stored))
        ]
        self._of_pair = items
        self.true = [pair.true for pair in stored]
        self._pixels, hashes = _pixels([stored[row] for row in images], data)
        described = [[pair.source, pair.source_caption, pair.caption, pair.facts] for pair in stored]
        self.fingerprint = _digest(data.fingerprint, described, hashes)
        self.notes = [*data.notes, f"{len(stored)} augmented pairs stand beside those of the set"]

    def images(self, indices: Tensor) -> Tensor:
        rows = rows_of(indices, len(self))
        new = rows >= len(self.base)
        if not bool(new.any()):
            return self.base.images(rows)
        images = self.base.images(rows.masked_fill(new, 0))  # row 0 in the place of new ones, which follow
        fresh = torch.from_numpy(np.asarray(self._pixels[(rows[new] - len(self.base)).numpy()]))
        images[new] = fresh.float() / 255
        return images

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        block = self._related(images, captions)
        for column, caption in enumerate(captions.tolist() if self._same_text else ()):
            if (rows := self._same_text.get(caption)) is not None:
                block[:, column] = self._related(images, rows).any(1)
        return block

    def _related(self, images: Tensor, captions: Tensor) -> Tensor:
        of_item = self.item[images][:, None] == self.owner[captions][None, :]
        return self._relation(images, captions) | (of_item & self._stands_for_item[images][:, None])

    def pairs_of(self) -> tuple[list[Tensor], list[Tensor]]:
        own, _ = self.base.pairs_of()
        augmented: list[list[tuple[int, int]]] = [[] for _ in own]
        for item, pairs in zip(self._of_pair, self._augmented, strict=True):
            augmented[item].extend(pairs)
        return own, [torch.tensor(pairs, dtype=torch.long).reshape(-1, 2) for pairs in augmented]


def _checked(place: Path, data: ImageTextData) -> list[StoredPair]:
    """The pairs of a directory that was made for ``data``."""
    made_for = read_manifest(place).get("data", {}).get(data.split, {}).get("fingerprint")
    if made_for != data.fingerprint:
        raise UserError(
            f"{place} was made for another set than the split {data.split!r} of {data.name} (its fingerprint differs): "
            "augment this one, with the same dataset=... and the same settings of it."
        )
    return read_pairs(place)


def _first(pairs: Sequence[StoredPair], number: int | None) -> list[StoredPair]:
    counts: dict[str, int] = {}
    kept = []
    for pair in pairs:
        counts[pair.source] = counts.get(pair.source, 0) + 1
        if number is None or counts[pair.source] <= number:
            kept.append(pair)
    return kept


def _same_text(captions: Sequence[str], old: int) -> dict[int, Tensor]:
    """Caption -> all captions (long) of its text, of the texts of several, one of them new, which is one from ``old``
    on.
    """
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(captions):
        rows.setdefault(text, []).append(row)
    several = [same for same in rows.values() if len(same) > 1 and same[-1] >= old]
    return {row: torch.tensor(same) for same in several for row in same}


def _captions(row: int | None, of_image: Tensor) -> list[int]:
    return of_image.tolist() if row is None else [row]


def _pixels(pairs: Sequence[StoredPair], data: ImageTextData) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels (N,3,S,S) of new images at the size of the set, and the hashes of their files."""
    size = int(data.images(torch.tensor([0])).shape[-1])
    blobs = [pair.image for pair in pairs if pair.image is not None]
    if not blobs:
        return np.empty((0, 3, size, size), np.uint8), []
    store = open_store(blobs, size, stop_at_bad=True)
    if store.bad:
        position, problem = store.bad[0]
        raise UserError(f"the augmented image of {pairs[position].source} in {blobs[position].path} {problem}.")
    return store.pixels, list(store.hashes)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
