"""The interface of a method of augmentation: new captions or new images for the images of a set.

Shapes: B batch, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.seeding import generator


class Augmenter(ABC):
    """A method of augmentation.

    The pairs of an image depend on the set, the seed and the image alone: not on the chunk that it is made in.

    Attributes:
        model: path or name of the model behind the method; None: it has none.
        model_sha256: of the model's weights.
    """

    model: str | None = None
    model_sha256: str | None = None

    def check(self, data: ImageTextData) -> None:  # noqa: B027, objects to nothing
        """Refuse a set that this method cannot augment, before long work.

        Raises:
            UserError: it cannot; the message names what will do.
        """

    @abstractmethod
    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        """Augmented pairs of ``images``, rows of ``data``, in the order of the images."""

    def provenance(self) -> Mapping[str, Any]:
        """Columns of the model in the shards."""
        return {"model": self.model, "model_sha256": self.model_sha256}


def distinct(pairs: Sequence[AugmentedPair], data: ImageTextData) -> list[AugmentedPair]:
    """``pairs`` without repetitions: an image's captions that it has already, and new images that are equal."""
    taken: dict[int, set[Any]] = {}
    captions_of = data.captions_of()
    kept = []
    for pair in pairs:
        if pair.source not in taken:
            taken[pair.source] = {data.captions[row] for row in captions_of[pair.source].tolist()}
        content = pair.caption if pair.image is None else (pair.image.tobytes(), pair.caption, pair.source_caption)
        if content not in taken[pair.source]:
            taken[pair.source].add(content)
            kept.append(pair)
    return kept


def own_order(name: str, count: int) -> list[int]:
    """Order of the ``count`` captions of the image ``name``, drawn by its name alone: the same in every command.

    The captions of an image may stand in an order of their own, from the full to the vague.
    """
    return torch.randperm(count, generator=generator("captions", name)).tolist()


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Images (B,3,H,W) in [0,1] -> (B,H,W,3) uint8, as `AugmentedPair` and other libraries have them."""
    pixels: NDArray[np.uint8] = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
