"""Sampling of training images and pairs: a batch is a function of seed and step alone.

So a resume has no state to restore.

Shapes: B batch, N images.
"""

from collections.abc import Sized
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

    Raises:
        UserError: a batch larger than the set.
    """

    def __init__(self, data: Named, *, batch_size: int, seed: int) -> None:
        if batch_size > len(data):
            raise UserError(
                f"trainer.batch_size is {batch_size}, but the {data.split} split of {data.name} has {len(data)} "
                f"images: set trainer.batch_size={len(data)} or less."
            )
        self._count, self._batch_size, self._seed = len(data), batch_size, seed
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


class PairSampler:
    """Pairs of the images of `Epochs`, each with one of its captions, drawn uniformly for that visit."""

    def __init__(self, data: ImageTextData, *, batch_size: int, seed: int) -> None:
        self._data, self._seed = data, seed
        self._epochs = Epochs(data, batch_size=batch_size, seed=seed)
        self._captions_of = data.captions_of()

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch, as in `Epochs`."""
        return self._epochs.batches_per_epoch

    def __call__(self, number: int) -> PairBatch:
        """Batch ``number`` of the run, counted from 0 through all epochs."""
        images = self._epochs(number)
        draws = torch.rand(len(images), generator=generator(self._seed, "caption", number))
        owned = [self._captions_of[i] for i in images.tolist()]
        captions = torch.stack([own[int(draw * len(own))] for own, draw in zip(owned, draws, strict=True)])
        return PairBatch(
            image_ids=images,
            caption_ids=captions,
            captions=tuple(self._data.captions[j] for j in captions.tolist()),
            matches=self._data.relevance(images, captions),
        )
