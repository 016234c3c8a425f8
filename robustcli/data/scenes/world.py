"""Scenes as arrays of attributes, and their disjoint splits.

Shapes: N scenes, O = 3 objects, A = 4 attributes (colour, kind, size, place).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.draws import integers, mix, words

COLOURS = ("red", "green", "blue", "yellow", "purple", "pink")
KINDS = ("circle", "square", "triangle", "ring", "cross", "diamond")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
TEXTURES = ("plain", "stripes", "checks", "dots")
ATTRIBUTES = (COLOURS, KINDS, SIZES, PLACES)
OBJECTS = 3
COUNTS = np.array([1, 2, 2, 2, 3])  # of the objects of a scene, all as likely as each other
NONE = -1  # an object that is not there, or an attribute that a caption leaves open
SPLITS = {"train": (0, 8), "val": (8, 9), "test": (9, 10)}  # tenths of the space of scenes
_PLACE = 3


@dataclass(frozen=True)
class World:
    """N scenes: ``objects`` (N,O,A) with `NONE` for absent ones, ``textures`` (N,)."""

    objects: NDArray[np.int64]
    textures: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,) number of objects."""
        counts: NDArray[np.int64] = (self.objects[:, :, 0] != NONE).sum(1)
        return counts

    def __getitem__(self, index: NDArray[np.int64] | slice) -> "World":
        return World(self.objects[index], self.textures[index])

    def __len__(self) -> int:
        return len(self.textures)


def draw_world(split: str, n: int, seed: int) -> World:
    """``n`` different scenes of a split; equal scenes never stand in two splits, whatever the seeds.

    The split is a function of the scene itself (a hash of its objects as a set, and of its texture), not of the draw.

    Raises:
        ValueError: the draws hold fewer than ``n`` different scenes of the split.
    """
    low, high = SPLITS[split]
    drawn = 4 * n * 10 // (high - low) + 1000
    world = random_world(drawn, seed)
    keys = scene_keys(world)
    _, first = np.unique(keys, return_index=True)
    fresh = np.zeros(drawn, dtype=bool)
    fresh[first] = True
    chosen = np.flatnonzero(fresh & belongs(world, split))[:n]
    if len(chosen) < n:
        raise ValueError(
            f"the space of scenes gave only {len(chosen)} different ones of split {split}, {n} were asked for"
        )
    return world[chosen]


def single_objects(split: str) -> World:
    """All scenes of a split that have one object, in a fixed order."""
    grid = np.meshgrid(*(np.arange(len(names)) for names in (*ATTRIBUTES, TEXTURES)), indexing="ij")
    *attributes, textures = (axis.ravel() for axis in grid)
    objects = np.full((len(textures), OBJECTS, len(ATTRIBUTES)), NONE, dtype=np.int64)
    objects[:, 0] = np.stack(attributes, axis=1)
    world = World(objects, textures.astype(np.int64))
    return world[np.flatnonzero(belongs(world, split))]


def belongs(world: World, split: str) -> NDArray[np.bool_]:
    """(N,) True for the scenes of a split: a hash of the scene decides, so none stands in two."""
    low, high = SPLITS[split]
    tenth = (mix(scene_keys(world)) >> np.uint64(11)) % np.uint64(10)
    return np.asarray((tenth >= low) & (tenth < high))


def scene_keys(world: World) -> NDArray[np.uint64]:
    """(N,) a number for each scene that does not depend on the order of its objects."""
    radix = np.array([1, 8, 64, 256])
    codes = np.where(world.objects[:, :, 0] == NONE, 0, 1 + (world.objects * radix).sum(2))
    codes = np.sort(codes, axis=1)
    return (((codes[:, 0] << 24) | (codes[:, 1] << 12) | codes[:, 2]) * 8 + world.textures).astype(np.uint64)


def random_world(n: int, seed: int, counts: NDArray[np.int64] | None = None) -> World:
    """``n`` scenes drawn at random, some of them equal, of any split.

    Args:
        counts: (N,) objects of each, 1 to 3; None: drawn.
    """
    objects = np.stack([integers(seed, 1 + a, (n, OBJECTS), len(names)) for a, names in enumerate(ATTRIBUTES)], axis=2)
    # A place holds one object.
    objects[:, :, _PLACE] = np.argsort(words(seed, 5, (n, len(PLACES))), axis=1)[:, :OBJECTS]
    if counts is None:
        counts = COUNTS[integers(seed, 6, (n,), len(COUNTS))]
    objects[np.arange(OBJECTS)[None, :] >= counts[:, None]] = NONE
    return World(objects, integers(seed, 7, (n,), len(TEXTURES)))
