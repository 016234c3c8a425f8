"""`scenes`: the embedded set of rendered images with captions, whose relation of truth is known exactly.

A scene holds one to three shapes on a textured background; each shape has a colour, a kind, a size and a place. Six
captions say more or less of it, in words that have synonyms. What a caption claims is kept as a predicate, so that for
every pair of caption and image the truth of the caption is known.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.data.base import Derived, ImageTextData, Relation, rows_of
from robustcli.data.scenes.captions import (
    PER_IMAGE,
    Predicates,
    synonym_table,
    truth,
    vocabulary,
    write_captions,
)
from robustcli.data.scenes.facts import caption_facts, further_predicates, further_world
from robustcli.data.scenes.image_cache import RECIPE, cached_images, check_image_settings, split_count
from robustcli.data.scenes.world import World, draw_world
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

__all__ = ["Scenes", "synonym_table", "vocabulary"]

_ROWS_AT_ONCE = 256  # of the relation of truth, which takes nine times its size while it is made


class Scenes(ImageTextData):
    """The embedded set; the same arguments give the same bytes on every machine.

    Args:
        split: ``train``, ``val`` or ``test``; no scene stands in two of them, whatever the seed.
        size: pixels a side, 32 or 64.
        train, val, test: number of images of each split.
        synonym_frequency: chance in [0,1] that a word is written as one of its rarer synonyms. It sets the strength of
            a word substitution.
        contrast: distance of all tones from mid-grey, in (0,1]. It sets the strength of a given eps.
        noise: each pixel is shifted by up to so many of 255 grey levels.
        seed: of the scenes, their images and their words.

    Attributes:
        world, predicates: what the images show and the captions claim.

    Raises:
        UserError: another split, or a value out of range.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        split: str,
        size: int = 32,
        train: int = 20_000,
        val: int = 500,
        test: int = 500,
        synonym_frequency: float = 0.003,
        contrast: float = 0.75,
        noise: int = 4,
        seed: int = 0,
    ) -> None:
        count = split_count(self.name, split, train=train, val=val, test=test)
        check_image_settings(split, size=size, contrast=contrast, count=count)
        if not 0 <= synonym_frequency <= 1:
            raise UserError(f"dataset.synonym_frequency is {synonym_frequency}: it is a chance, between 0 and 1.")
        self.split = split
        stream = derive_seed(RECIPE, seed, split)
        self.size, self.synonym_frequency, self.contrast, self.noise = size, synonym_frequency, contrast, noise
        self.world = draw_world(split, count, stream)
        texts, self.predicates = write_captions(self.world, synonym_frequency, stream)
        self.captions = texts
        self.image_ids = [f"scene-{seed}-{split}-{i:05d}" for i in range(count)]
        self.owner = torch.arange(count).repeat_interleave(PER_IMAGE)
        self.synonyms = synonym_table()
        self._pixels = torch.from_numpy(cached_images(self.world, size, stream, noise=noise, contrast=contrast))
        self.fingerprint = _fingerprint(self._pixels.numpy(), texts)

    def images(self, indices: Tensor) -> Tensor:
        return self._pixels[rows_of(indices, len(self))].float() / 255

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return _judged(self.world, self.predicates, images, captions)

    def caption_facts(self, caption: int) -> str:
        return caption_facts(self.predicates, caption)

    def relation_with(self, images: Sequence[Derived], captions: Sequence[Derived]) -> Relation:
        world, predicates = further_world(self.world, images), further_predicates(self.predicates, captions)
        # A caption of which nothing is known would be true of all, as one that claims nothing.
        unknown = [each.source is None and each.facts is None for each in captions]
        known = torch.tensor([*[True] * len(self.captions), *(not each for each in unknown)])
        return lambda shown, said: _judged(world, predicates, shown, said) & known[said][None, :]


def _judged(world: World, predicates: Predicates, images: Tensor, captions: Tensor) -> Tensor:
    asked = predicates[captions.numpy()]
    parts = [truth(world[rows.numpy()], asked) for rows in torch.split(images, _ROWS_AT_ONCE)]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, len(captions), dtype=torch.bool)


def _fingerprint(pixels: NDArray[np.uint8], texts: list[str]) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.tobytes())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()
