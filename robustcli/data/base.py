"""The interface of a set of images with captions.

Shapes: B batch, H height, W width, N images, M captions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustcli.utils.relevance import Relevance

Relation = Callable[[Tensor, Tensor], Tensor]  # (rows of images, rows of captions) -> block of the relation, bool


@dataclass(frozen=True)
class Derived:
    """An image or a caption that was made for a set.

    Attributes:
        source: row of the image or caption that it is a version of; None: of none.
        facts: what an image shows, or a caption claims, as the set itself writes it; None: not known.
    """

    source: int | None
    facts: str | None = None


class ImageTextData(ABC):
    """Images, captions and the relation of truth between them.

    Attributes:
        name: of the set, in tables.
        split: ``train``, ``val`` or ``test``.
        image_ids: N unique names of the images.
        captions: M captions.
        owner: (M,) long; caption ``j`` was written for image ``owner[j]``.
        fingerprint: sha256 (hex) of the content, or of the recipe where the content is made from one.
        synonyms: word -> words of the same meaning, where the set knows them; else None.
        skipped: rows that were left out because ``on_error=skip`` was asked for.
        notes: sentences on what was done to the files' content, for the foot of a table.
        text_decides: whether a caption is true of all images that have its very text.
    """

    name: str
    split: str
    image_ids: Sequence[str]
    captions: Sequence[str]
    owner: Tensor
    fingerprint: str
    synonyms: Mapping[str, Sequence[str]] | None = None
    skipped: int = 0
    notes: Sequence[str] = ()
    text_decides: bool = False

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """Images (B,3,H,W), float32 in [0,1], for ``indices`` (B,) long.

        Raises:
            IndexError: an index outside of [0,N), a negative one too.
        """

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        """Block (len(images), len(captions)) of the relation, bool: True where the caption is true of the image.

        Both arguments are long indices. A set that knows only which caption was written for which image counts just
        those pairs.
        """
        return self.owner[captions][None, :] == images[:, None]

    def positives(self, images: Tensor, captions: Tensor) -> Relevance:
        """`relevance` as lists, for as many images and captions as a set has.

        A set that has lists should give them: they are gathered here from blocks, which costs an operation for every
        image and caption.
        """
        return Relevance.of_blocks(lambda rows: self.relevance(rows, captions), images, len(captions))

    def captions_of(self) -> list[Tensor]:
        """N tensors of indices (long): the captions that were written for each image."""
        return self._captions_by_image

    @cached_property  # sorting all captions once for each batch of an augmentation would take longer than the batch
    def _captions_by_image(self) -> list[Tensor]:
        order = torch.argsort(self.owner, stable=True)
        counts = torch.bincount(self.owner, minlength=len(self.image_ids))
        return list(torch.split(order, counts.tolist()))

    def relation_with(self, images: Sequence[Derived], captions: Sequence[Derived]) -> Relation:
        """The relation of truth of this set and of further images and captions, whose rows follow its own.

        A version of an image or caption counts as what it was made from; a caption that is a version of none is true of
        no image. A set that can judge ``facts`` does so.
        """
        of_image = torch.tensor([*range(len(self)), *(_source(each) for each in images)])
        of_caption = torch.tensor([*range(len(self.captions)), *(_source(each) for each in captions)])

        def relation(rows: Tensor, columns: Tensor) -> Tensor:
            shown, said = of_image[rows], of_caption[columns]
            block = self.relevance(shown.clamp(min=0), said.clamp(min=0))
            return block & (shown >= 0)[:, None] & (said >= 0)[None, :]

        return relation

    def caption_facts(self, caption: int) -> str | None:
        """What the caption of this row claims, see `Derived`; None where the set does not know."""
        return None

    def pairs_of(self) -> tuple[list[Tensor], list[Tensor]]:
        """The pairs that a training may visit for each of its K items, as two lists of K tensors (P,2) long: pairs of
        the set itself, and augmented ones; a pair is a row of an image and a row of a caption.

        The items of a plain set are its images.
        """
        own = [torch.stack([torch.full_like(rows, image), rows], 1) for image, rows in enumerate(self.captions_of())]
        return own, [torch.empty(0, 2, dtype=torch.long)] * len(own)

    def provenance(self) -> dict[str, str | int]:
        """Entry of the set in the manifest of a run: fingerprint, number of images, entries left out."""
        return {"fingerprint": self.fingerprint, "images": len(self), "skipped": self.skipped}

    def __len__(self) -> int:
        return len(self.image_ids)


def _source(derived: Derived) -> int:
    return -1 if derived.source is None else derived.source


def rows_of(indices: Tensor, count: int) -> Tensor:
    """``indices`` (B,) on the CPU, of images of a set of ``count``.

    Raises:
        IndexError: one that is not there; a negative one too, which tensors would count from the end.
    """
    rows = indices.cpu()
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise IndexError(f"image {int(rows.min())} to {int(rows.max())} asked for, the set has {count}")
    return rows
