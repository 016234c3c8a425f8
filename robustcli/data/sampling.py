"""Sampling of training images and pairs: a batch is a function of seed and step alone.

So a resume has no state to restore.

Shapes: B batch, N images, K items (the images of a set, with what was made from each), P pairs of an item.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@dataclass(frozen=True)
class PairBatch:
    """B training pairs: ``image_ids`` and ``caption_ids`` (B,) long, the B captions, and ``matches`` (B,B) bool.

    ``matches[i, j]`` is True if caption j is true of image i: the diagonal, and false negatives of a contrastive loss.
    """

    image_ids: Tensor
    caption_ids: Tensor
    captions: tuple[str, ...]
    matches: Tensor


@dataclass(frozen=True)
class ClassBatch:
    """B labelled images: ``image_ids`` and ``labels``, both (B,) long."""

    image_ids: Tensor
    labels: Tensor


class Named(Sized, Protocol):
    """A set of images that can be named in a message."""

    name: str
    split: str


class Epochs:
    """Epochs of shuffled batches without replacement; the order is named by seed and epoch.

    Args:
        batch_size: B; the N mod B images at the end of an epoch's order are left out of that epoch.
        count: N; None: the images of ``data``.

    Raises:
        UserError: a batch larger than the set.
    """

    def __init__(self, data: Named, *, batch_size: int, seed: int, count: int | None = None) -> None:
        count = len(data) if count is None else count
        if batch_size > count:
            raise UserError(
                f"trainer.batch_size is {batch_size}, but the {data.split} split of {data.name} has {count} "
                f"images: set trainer.batch_size={count} or less."
            )
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.long))

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch, N // B."""
        return self._count // self._batch_size

    def __call__(self, number: int) -> Tensor:
        """Places (B,) long of the images of batch ``number`` of the run, counted from 0 through all epochs."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self._count, generator=generator(self._seed, "epoch", epoch)))
        return self._order[1][position * self._batch_size : (position + 1) * self._batch_size]


Draw = Callable[[int], Tensor]  # number of a batch -> its pairs (B,2) long, rows of images and of captions


class Pairing(ABC):
    """The way in which an item's own and augmented pairs enter the batches of a training."""

    @abstractmethod
    def draw(
        self, data: Named, own: Sequence[Tensor], augmented: Sequence[Tensor], *, batch_size: int, seed: int
    ) -> tuple[Draw, int]:
        """The drawing of batches, and whole batches of an epoch.

        Args:
            own, augmented: K tensors (P,2) of pairs each, see `ImageTextData.pairs_of`.

        Raises:
            UserError: a batch that does not fit to the set or to the pairing.
        """


@dataclass(frozen=True, kw_only=True)
class Replace(Pairing):
    """Each visit of an item draws one of its pairs: a batch stays 1:1, and costs what it costs without augmentation.

    Args:
        share: of the visits that draw an augmented pair, where the item has some, in [0,1]; None: all pairs of an item
            are as likely as each other.
        rise: epochs over which that share rises from 0, in equal steps.

    Raises:
        UserError: a value out of range.
    """

    share: float | None = None
    rise: int = 0

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 1:
            raise UserError(f"pairing.share is {self.share:g}: it is a share, between 0 and 1, or null.")
        if self.rise < 0:
            raise UserError(f"pairing.rise is {self.rise}: it counts epochs, 0 or more.")

    def draw(
        self, data: Named, own: Sequence[Tensor], augmented: Sequence[Tensor], *, batch_size: int, seed: int
    ) -> tuple[Draw, int]:
        epochs = Epochs(data, batch_size=batch_size, seed=seed, count=len(own))

        def drawn(number: int) -> Tensor:
            items = epochs(number)
            risen = 1.0 if not self.rise else min(1.0, number // epochs.batches_per_epoch / self.rise)
            which = torch.rand(len(items), generator=generator(seed, "augmented", number)).tolist()
            draws = torch.rand(len(items), generator=generator(seed, "caption", number))
            pairs = []
            for item, kind, place in zip(items.tolist(), which, draws, strict=True):
                new, old = augmented[item], own[item]
                share = len(new) / (len(new) + len(old)) if self.share is None else self.share
                pool = new if len(new) and kind < share * risen else old
                pairs.append(pool[int(place * len(pool))])
            return torch.stack(pairs)

        return drawn, epochs.batches_per_epoch


@dataclass(frozen=True, kw_only=True)
class Append(Pairing):
    """Every pair once an epoch, own and augmented: an epoch is longer, and a batch may hold an item twice."""

    def draw(
        self, data: Named, own: Sequence[Tensor], augmented: Sequence[Tensor], *, batch_size: int, seed: int
    ) -> tuple[Draw, int]:
        pairs = torch.cat([*own, *augmented])
        epochs = Epochs(data, batch_size=batch_size, seed=seed, count=len(pairs))
        return lambda number: pairs[epochs(number)], epochs.batches_per_epoch


@dataclass(frozen=True, kw_only=True)
class Group(Pairing):
    """Several pairs of an item in the same batch, for a loss with several positives (``defense.positives=soft``).

    Args:
        pairs: of an item in a batch, 2 or more; an item with fewer repeats them.

    Raises:
        UserError: fewer than 2.
    """

    pairs: int = 2

    def __post_init__(self) -> None:
        if self.pairs < 2:
            raise UserError(f"pairing.pairs is {self.pairs}: a group has at least 2; one a visit is pairing=replace.")

    def draw(
        self, data: Named, own: Sequence[Tensor], augmented: Sequence[Tensor], *, batch_size: int, seed: int
    ) -> tuple[Draw, int]:
        if batch_size % self.pairs:
            raise UserError(
                f"trainer.batch_size is {batch_size}, which groups of {self.pairs} pairs do not fill: set it to "
                f"{max(1, batch_size // self.pairs) * self.pairs}, or pairing.pairs to a divisor."
            )
        epochs = Epochs(data, batch_size=batch_size // self.pairs, seed=seed, count=len(own))

        def drawn(number: int) -> Tensor:
            pairs = []
            for item in epochs(number).tolist():
                pool = torch.cat([own[item], augmented[item]])
                order = torch.randperm(len(pool), generator=generator(seed, "group", number, item))
                pairs.append(pool[order.repeat(-(-self.pairs // len(pool)))[: self.pairs]])
            return torch.cat(pairs)

        return drawn, epochs.batches_per_epoch


class PairSampler:
    """Pairs of the items of a set, one of those of an item or several a visit, as ``pairing`` says."""

    def __init__(self, data: ImageTextData, *, batch_size: int, seed: int, pairing: Pairing | None = None) -> None:
        self._data = data
        own, augmented = data.pairs_of()
        self._draw, self.batches_per_epoch = (pairing or Replace()).draw(
            data, own, augmented, batch_size=batch_size, seed=seed
        )

    def __call__(self, number: int) -> PairBatch:
        """Batch ``number`` of the run, counted from 0 through all epochs."""
        images, captions = self._draw(number).unbind(1)
        matches = self._data.relevance(images, captions)
        matches.fill_diagonal_(True)  # a pair is a positive of its own, whatever the set knows of its truth
        return PairBatch(
            image_ids=images,
            caption_ids=captions,
            captions=tuple(self._data.captions[j] for j in captions.tolist()),
            matches=matches,
        )
