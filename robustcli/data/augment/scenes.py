"""Augmentation of `scenes` from the exact facts: true new captions of an image, true new images of a caption.

Two knobs spoil them on purpose, so that cause and effect can be seen: a share of wrong statements, and a shift towards
another world.

Shapes: A = 4 attributes of an object (colour, kind, size, place).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.data.augment.augmented import FewerCaptions
from robustcli.data.augment.base import Augmenter
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.data.scenes import Scenes
from robustcli.data.scenes.captions import COUNTS as COUNT_WORDS
from robustcli.data.scenes.captions import PER_IMAGE, Caption, Predicates, claims, six_captions, truth, with_synonyms
from robustcli.data.scenes.facts import caption_facts, scene_facts
from robustcli.data.scenes.render import render_scenes
from robustcli.data.scenes.world import ATTRIBUTES, NONE, TEXTURES, World, belongs, random_world
from robustcli.data.scenes.world import COUNTS as SCENE_COUNTS
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_share
from robustcli.utils.seeding import derive_seed

_ATTEMPTS = 48  # at a scene that a caption is true of; it leaves out about one caption in a thousand
_SHIFTED_PERIOD = 3  # of the textures of another world, in place of 8


class Paraphrase(Augmenter):
    """New captions of an image in the six forms of the set, about its objects in another order.

    Args:
        number: captions of an image; fewer where it has no more that differ.
        misaligned: share of the statements on objects and background that are made wrong, in [0,1].
        words: chance that a word is written as a rarer synonym, beyond that of the set, in [0,1].
        lengths: share of the captions that tell everything at once, at twice the mean length, in [0,1].

    Raises:
        UserError: a share out of range.
    """

    def __init__(self, *, number: int, misaligned: float = 0.0, shift: Mapping[str, float] | None = None) -> None:
        self.number, self.misaligned = (
            at_least("number", number, 1, node="augment"),
            parse_share("misaligned", misaligned, node="augment"),
        )
        self.words, self.lengths = _shifts(shift, ("words", "lengths"))

    def check(self, data: ImageTextData) -> None:
        _scenes(data)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        scenes, _ = _scenes(data)
        captions_of = data.captions_of()
        frequency = scenes.synonym_frequency + (1 - scenes.synonym_frequency) * self.words
        made: list[AugmentedPair] = []
        for image in images:
            stream = derive_seed("paraphrase", seed, data.image_ids[image])
            draw = np.random.default_rng(stream)
            told = self._told(scenes.world, image, {data.captions[j] for j in captions_of[image].tolist()}, draw)
            if not told:
                continue
            facts = claims(told)
            true = truth(scenes.world[np.array([image])], facts)[0]
            texts = with_synonyms([text for text, *_ in told], frequency, stream)
            made.extend(
                AugmentedPair(source=image, caption=text, facts=caption_facts(facts, row), true=bool(true[row]))
                for row, text in enumerate(texts)
            )
        return made

    def _told(self, world: World, image: int, taken: set[str], draw: np.random.Generator) -> list[Caption]:
        """Captions of an image that differ from each other and from ``taken`` while they are true.

        They are chosen before any statement is made wrong: a wrong caption is always a new one, and would be chosen
        more often than its share.
        """
        count, texture = int(world.counts[image]), int(world.textures[image])
        chosen: list[Caption] = []
        for _ in range(3 * self.number):
            objects = world.objects[image, draw.permutation(count)].tolist()
            pick, form, long = int(draw.integers(2)), int(draw.integers(PER_IMAGE)), draw.random() < self.lengths
            true = _in_form(objects, texture, pick, form, long)
            wrong = [
                [_stated(value, len(ATTRIBUTES[a]), self.misaligned, draw) for a, value in enumerate(each)]
                for each in objects
            ]
            ground = _stated(texture, len(TEXTURES), self.misaligned, draw)
            if true[0] not in taken and len(chosen) < self.number:
                taken.add(true[0])
                chosen.append(_in_form(wrong, ground, pick, form, long))
        return chosen


class Redraw(Augmenter):
    """New images of the captions of an image, of scenes of the same split of which the caption is true.

    Args:
        number: new images for an image of the set, spread over its captions in turn.
        misaligned: share of the statements of a caption that the new image makes wrong, in [0,1].
        shift: ``textures``: share of the images whose backgrounds have another scale; ``contrast``: share of the
            contrast that is taken away; both in [0,1].

    Raises:
        UserError: a share out of range.
    """

    def __init__(self, *, number: int, misaligned: float = 0.0, shift: Mapping[str, float] | None = None) -> None:
        self.number, self.misaligned = (
            at_least("number", number, 1, node="augment"),
            parse_share("misaligned", misaligned, node="augment"),
        )
        self.textures, self.contrast = _shifts(shift, ("textures", "contrast"))

    def check(self, data: ImageTextData) -> None:
        _scenes(data)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        scenes, predicates = _scenes(data)
        captions_of = data.captions_of()
        made: list[AugmentedPair] = []
        for image in images:
            stream = derive_seed("redraw", seed, data.image_ids[image])
            draw = np.random.default_rng(stream)
            own = captions_of[image].tolist()
            rows = [own[turn % len(own)] for turn in range(self.number)]
            worlds = [self._scene(predicates, row, scenes.split, draw) for row in rows]
            drawn = [(row, world) for row, world in zip(rows, worlds, strict=True) if world is not None]
            if not drawn:
                continue
            world = World(
                np.concatenate([each.objects for _, each in drawn]),
                np.concatenate([each.textures for _, each in drawn]),
            )
            pixels = self._rendered(world, scenes, stream, draw)
            made.extend(
                AugmentedPair(
                    source=image,
                    source_caption=row,
                    image=pixels[place],
                    facts=scene_facts(world, place),
                    true=bool(truth(world[np.array([place])], predicates[np.array([row])])[0, 0]),
                )
                for place, (row, _) in enumerate(drawn)
            )
        return made

    def _scene(self, predicates: Predicates, row: int, split: str, draw: np.random.Generator) -> World | None:
        """A scene of the split that the caption ``row`` is true of, but for the statements that are made wrong."""
        asked = predicates[np.array([row])]
        asked = Predicates(asked.patterns.copy(), asked.counts, asked.textures.copy(), asked.relations)
        stated = np.argwhere(asked.patterns[0] != NONE)
        for pattern, attribute in stated:
            choices = len(ATTRIBUTES[attribute])
            asked.patterns[0, pattern, attribute] = _stated(
                int(asked.patterns[0, pattern, attribute]), choices, self.misaligned, draw
            )
        if asked.textures[0] != NONE:
            asked.textures[0] = _stated(int(asked.textures[0]), len(TEXTURES), self.misaligned, draw)
        world = _imposed(asked, draw)
        places = world.objects[:, :, 3]
        apart = np.array([len(set(p[p != NONE])) == (p != NONE).sum() for p in places])
        fits = np.flatnonzero(apart & truth(world, asked)[:, 0] & belongs(world, split))
        return world[fits[:1]] if len(fits) else None

    def _rendered(self, world: World, scenes: Scenes, stream: int, draw: np.random.Generator) -> NDArray[np.uint8]:
        """Images (N,S,S,3)."""
        contrast = max(scenes.contrast * (1 - self.contrast), 0.01)
        render = partial(render_scenes, world, scenes.size, stream, contrast=contrast, noise=scenes.noise)
        pixels = render()
        shifted = draw.random(len(world)) < self.textures
        if shifted.any():
            other = render(period=_SHIFTED_PERIOD)
            pixels = np.where(shifted[:, None, None, None], other, pixels)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _in_form(objects: list[list[int]], texture: int, pick: int, form: int, long: bool) -> Caption:
    captions = six_captions(objects, texture, pick)
    return (f"{COUNT_WORDS[len(objects) - 1]} with {captions[0][0]}", *captions[0][1:]) if long else captions[form]


def _stated(value: int, choices: int, misaligned: float, draw: np.random.Generator) -> int:
    """``value`` of an attribute, or with a chance of ``misaligned`` another one."""
    wrong = draw.random() < misaligned
    return (value + 1 + int(draw.integers(choices - 1))) % choices if wrong else value


def _imposed(asked: Predicates, draw: np.random.Generator) -> World:
    """Random scenes with the claims of one caption written into them; two objects may stand in one place."""
    named = int((asked.patterns[0] != NONE).any(1).sum())
    counts = np.maximum(draw.choice(SCENE_COUNTS, _ATTEMPTS), named)
    if asked.counts[0] != NONE:
        counts[:] = asked.counts[0]
    world = random_world(_ATTEMPTS, int(draw.integers(2**62)), counts)
    stated = asked.patterns[0] != NONE
    world.objects[:, stated] = asked.patterns[0][stated]
    if asked.textures[0] != NONE:
        world.textures[:] = asked.textures[0]
    return world


def _scenes(data: ImageTextData) -> tuple[Scenes, Predicates]:
    """The scenes behind ``data``, and the claims of its captions."""
    if isinstance(data, FewerCaptions) and isinstance(data.base, Scenes):
        return data.base, data.base.predicates[data.rows.numpy()]
    if not isinstance(data, Scenes):
        raise UserError(f"only dataset=scenes knows what its images show: choose another augment=... for {data.name}.")
    return data, data.predicates


def _shifts(shift: Mapping[str, Any] | None, keys: Sequence[str]) -> tuple[float, ...]:
    return tuple(parse_share(key, (shift or {}).get(key, 0.0), node="augment.shift") for key in keys)
