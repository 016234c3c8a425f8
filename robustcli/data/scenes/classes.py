"""``scene_classes``: scenes of one object, whose shape, colour, size or place is the class.

Shapes: B batch, S pixels a side, N scenes.
"""

from collections.abc import Mapping

import numpy as np
import torch

from robustcli.data.class_arrays import fingerprint_of
from robustcli.data.classes import PixelClasses
from robustcli.data.files import check_fingerprint
from robustcli.data.scenes.captions import synonym_table
from robustcli.data.scenes.draws import integers
from robustcli.data.scenes.image_cache import cached_images, check_image_settings, split_count
from robustcli.data.scenes.world import COLOURS, KINDS, PLACES, SIZES, TEXTURES, single_objects
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

_RECIPE = "scene-classes-1"  # raise it when a recipe would give other bytes
_ATTRIBUTES = {"colour": (0, COLOURS), "shape": (1, KINDS), "size": (2, SIZES), "place": (3, PLACES)}
# Captions of `Scenes` without what the class does not say, in words that a model of them knows.
_TEMPLATES = {
    "colour": ("something {}",),
    "shape": tuple(f"a {size} {{}} on {texture}" for size in SIZES for texture in TEXTURES),
    "size": tuple(f"a {{}} {kind} on {texture}" for kind in KINDS for texture in TEXTURES),
    "place": tuple(f"something {colour} in the {{}}" for colour in COLOURS),
}
_STREAM = 8


class SceneClasses(PixelClasses):
    """Images (B,3,S,S) of one object on a textured background; the same arguments give the same bytes everywhere.

    There are 1,152 scenes of one object (six colours, six shapes, two sizes, four places, four backgrounds); none of
    them stands in two splits. Images of the same scene differ in position, size, tone, tint and noise.

    Args:
        attribute: that is the class: ``shape``, ``colour``, ``size`` or ``place``.
        split: ``train``, ``val`` or ``test``.
        size, contrast, noise, train, val, test, seed: as in `Scenes`.
        fingerprint: that the set must have, or one for each split; None: any.

    Raises:
        UserError: another attribute or split, a value out of range, or another fingerprint.
    """

    def __init__(
        self,
        attribute: str = "shape",
        *,
        split: str,
        size: int = 32,
        train: int = 10_000,
        val: int = 500,
        test: int = 1000,
        contrast: float = 0.75,
        noise: int = 4,
        seed: int = 0,
        fingerprint: str | Mapping[str, str] | None = None,
    ) -> None:
        if attribute not in _ATTRIBUTES:
            raise UserError(f"dataset.attribute is {attribute!r}: choose one of {', '.join(_ATTRIBUTES)}.")
        count = split_count("scene_classes", split, train=train, val=val, test=test)
        check_image_settings(split, size=size, contrast=contrast, count=count)
        place, classes = _ATTRIBUTES[attribute]
        stream = derive_seed(_RECIPE, seed, split)
        scenes = single_objects(split)
        world = scenes[integers(stream, _STREAM, (count,), len(scenes))]
        pixels = cached_images(world, size, stream, noise=noise, contrast=contrast, recipe=_RECIPE)
        labels = np.ascontiguousarray(world.objects[:, 0, place])
        names = [f"{attribute}-{seed}-{split}-{i:05d}" for i in range(count)]
        super().__init__(
            "scene_classes",
            split,
            pixels=torch.from_numpy(pixels),
            scale=255.0,
            labels=torch.from_numpy(labels),
            classes=classes,
            image_ids=names,
            fingerprint=fingerprint_of(pixels, labels, classes, names),
        )
        self.templates, self.synonyms = _TEMPLATES[attribute], synonym_table()
        check_fingerprint(self, fingerprint, None)
