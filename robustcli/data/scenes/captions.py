"""Captions of scenes, as words and as predicates, and the truth of each caption of each scene.

Shapes: N scenes, M captions, O = 3 objects, P = 3 patterns, A = 4 attributes (colour, kind, size, place).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.draws import integers, words
from robustcli.data.scenes.world import COLOURS, KINDS, NONE, OBJECTS, PLACES, SIZES, TEXTURES, World

# Words of one line mean the same. The first is the common one; the others are drawn with the frequency that the recipe
# asks for.
SYNONYMS = (
    ("red", "crimson", "scarlet"),
    ("green", "jade", "mint"),
    ("blue", "navy", "cobalt"),
    ("yellow", "golden", "lemon"),
    ("purple", "violet", "mauve"),
    ("pink", "rose", "coral"),
    ("circle", "disc", "ball"),
    ("square", "box", "block"),
    ("triangle", "wedge", "pyramid"),
    ("ring", "hoop", "loop"),
    ("cross", "plus", "crosshair"),
    ("diamond", "rhombus", "lozenge"),
    ("small", "little", "tiny"),
    ("large", "big", "huge"),
    ("top", "upper"),
    ("bottom", "lower"),
    ("plain", "blank", "bare"),
    ("stripes", "bands", "lines"),
    ("checks", "tiles", "grid"),
    ("dots", "spots", "specks"),
    ("shape", "figure", "object"),
    ("shapes", "figures", "objects"),
    ("above", "over"),
    ("something", "anything"),
)
FUNCTION_WORDS = ("a", "and", "in", "the", "on", "with", "left", "right", "of", "one", "two", "three")
COUNTS = ("one shape", "two shapes", "three shapes")
PER_IMAGE = 6
ABOVE, LEFT_OF = 1, 2  # the first pattern's object stands above, or left of, the second's
_RELATIONS = {ABOVE: "above", LEFT_OF: "left of"}


@dataclass(frozen=True)
class Predicates:
    """The claims of M captions about a scene; `NONE` stands for an attribute that one leaves open.

    ``patterns`` (M,P,A): objects that must be there, each another one; ``counts`` and ``textures`` (M,); ``relations``
    (M,), 0 for none.
    """

    patterns: NDArray[np.int64]
    counts: NDArray[np.int64]
    textures: NDArray[np.int64]
    relations: NDArray[np.int64]

    def __getitem__(self, index: NDArray[np.int64]) -> "Predicates":
        return Predicates(self.patterns[index], self.counts[index], self.textures[index], self.relations[index])


def vocabulary() -> tuple[str, ...]:
    """All words that a caption can hold, in a fixed order."""
    return tuple(dict.fromkeys((*itertools.chain.from_iterable(SYNONYMS), *FUNCTION_WORDS)))


def synonym_table() -> dict[str, tuple[str, ...]]:
    """Word -> the other words of the same meaning."""
    return {word: tuple(w for w in line if w != word) for line in SYNONYMS for word in line}


def truth(world: World, predicates: Predicates) -> NDArray[np.bool_]:
    """(N,M) bool: True where the caption is true of the scene.

    A caption is true if its patterns can be given to different objects of the scene, so that all attributes, the
    relation, the count and the texture hold.
    """
    fits = _fits(world, predicates)
    possible = np.zeros(fits.shape[2:], dtype=bool)
    for order in itertools.permutations(range(OBJECTS)):
        given = fits[order[0], 0] & fits[order[1], 1] & fits[order[2], 2]
        possible |= given & _related(world, predicates, order[0], order[1])
    possible &= (predicates.counts == NONE)[None] | (world.counts[:, None] == predicates.counts[None])
    possible &= (predicates.textures == NONE)[None] | (world.textures[:, None] == predicates.textures[None])
    return possible


def _fits(world: World, predicates: Predicates) -> NDArray[np.bool_]:
    """(O,P,N,M): True if the object matches the pattern; one that asks nothing matches an absent object too."""
    # int8: an eighth of the memory traffic of long.
    objects, patterns = world.objects.astype(np.int8), predicates.patterns.astype(np.int8)
    fits = np.ones((OBJECTS, OBJECTS, len(objects), len(patterns)), dtype=bool)
    for o, p, a in itertools.product(range(OBJECTS), range(OBJECTS), range(objects.shape[2])):
        want = patterns[None, :, p, a]
        fits[o, p] &= (objects[:, None, o, a] == want) | (want == NONE)
    return fits


def _related(world: World, predicates: Predicates, first: int, second: int) -> NDArray[np.bool_]:
    a, b = world.objects[:, first, 3], world.objects[:, second, 3]
    above, left = (a // 2 < b // 2)[:, None], (a % 2 < b % 2)[:, None]
    relation = predicates.relations[None]
    holds: NDArray[np.bool_] = (relation == 0) | ((relation == ABOVE) & above) | ((relation == LEFT_OF) & left)
    return holds


def write_captions(world: World, synonym_frequency: float, seed: int) -> tuple[list[str], Predicates]:
    """Six captions of each scene (so M = 6 N, in the order of the scenes), from a full description to a vague one.

    Args:
        synonym_frequency: chance in [0,1] that a word which has synonyms is written as one of them.
    """
    n = len(world)
    absent = (world.objects[:, :, 0] == NONE).astype(np.uint64) << np.uint64(63)
    orders = np.argsort((words(seed, 21, (n, OBJECTS)) >> np.uint64(1)) | absent, axis=1)
    # The order in which a caption names the objects is drawn for each scene.
    told = np.take_along_axis(world.objects, orders[:, :, None], axis=1)
    choice = integers(seed, 22, (n,), 2)
    captions = [
        caption
        for objects, count, texture, pick in zip(
            told.tolist(), world.counts.tolist(), world.textures.tolist(), choice.tolist(), strict=True
        )
        for caption in six_captions(objects[:count], texture, pick)
    ]
    return with_synonyms([text for text, *_ in captions], synonym_frequency, seed), claims(captions)


Caption = tuple[str, list[list[int]], int, int, int]  # text, patterns, count, texture, relation


def claims(captions: Sequence[Caption]) -> Predicates:
    """The predicates of captions."""
    patterns = np.array([_padded(pattern) for _, pattern, *_ in captions])
    counts, textures, relations = (
        np.array(column) for column in zip(*(caption[2:] for caption in captions), strict=True)
    )
    return Predicates(patterns, counts, textures, relations)


def six_captions(objects: list[list[int]], texture: int, pick: int) -> list[Caption]:
    """The six captions of a scene, from a full description to a vague one.

    Args:
        objects: in the order in which they are told, each with its four attributes.
        pick: of the two forms of the vague one, 0 or 1.
    """
    count, ground = len(objects), TEXTURES[texture]
    first = objects[0]
    named = [[c, k, NONE, NONE] for c, k, _, _ in objects]
    sized = [[NONE, k, s, NONE] for _, k, s, _ in objects]
    vague = [[first[0], NONE, NONE, first[3]], [NONE, first[1], NONE, first[3]]][pick]
    seen = [f"something {COLOURS[first[0]]}", f"a {KINDS[first[1]]}"][pick]
    vague_text = f"{seen} in the {PLACES[first[3]]} on {ground}"
    return [
        (" and ".join(f"a {_full(o)}" for o in objects) + f" on {ground}", objects, count, texture, 0),
        (" and ".join(f"a {COLOURS[c]} {KINDS[k]}" for c, k, _, _ in named) + f" on {ground}", named, NONE, texture, 0),
        (f"{COUNTS[count - 1]} with a {_placed(first)}", [first], count, NONE, 0),
        _relation(objects, texture),
        (" and ".join(f"a {SIZES[s]} {KINDS[k]}" for _, k, s, _ in sized) + f" on {ground}", sized, NONE, texture, 0),
        (vague_text, [vague], NONE, texture, 0),
    ]


def _relation(objects: list[list[int]], texture: int) -> Caption:
    if len(objects) == 1:
        c, k, s, _ = objects[0]
        return f"a {SIZES[s]} {COLOURS[c]} {KINDS[k]} on {TEXTURES[texture]}", [[c, k, s, NONE]], NONE, texture, 0
    first, second = objects[:2]
    relation = ABOVE if first[3] // 2 != second[3] // 2 else LEFT_OF
    # Places are numbered row by row, so the smaller one is above, or left where the row is the same.
    if first[3] > second[3]:
        first, second = second, first
    pair = [[first[0], first[1], NONE, NONE], [second[0], second[1], NONE, NONE]]
    a, b = (f"a {COLOURS[c]} {KINDS[k]}" for c, k, _, _ in pair)
    return f"{a} {_RELATIONS[relation]} {b}", pair, NONE, NONE, relation


def _full(o: Sequence[int]) -> str:
    return f"{SIZES[o[2]]} {COLOURS[o[0]]} {KINDS[o[1]]} {PLACES[o[3]]}"


def _placed(o: Sequence[int]) -> str:
    return f"{SIZES[o[2]]} {COLOURS[o[0]]} {KINDS[o[1]]} in the {PLACES[o[3]]}"


def _padded(patterns: list[list[int]]) -> list[list[int]]:
    return patterns + [[NONE] * 4] * (OBJECTS - len(patterns))


def with_synonyms(texts: list[str], frequency: float, seed: int) -> list[str]:
    """``texts`` with words written as one of their synonyms, each with a chance of ``frequency``; in place."""
    line_of = {line[0]: line for line in SYNONYMS}
    longest = max(len(text.split()) for text in texts)
    draw = integers(seed, 23, (len(texts), longest), 1_000_000)
    which = integers(seed, 24, (len(texts), longest), 3)  # the second synonym is half as frequent as the first
    rare = draw < round(frequency * 1_000_000)
    for row in np.flatnonzero(rare.any(1)):
        spoken = texts[row].split()
        for position in np.flatnonzero(rare[row, : len(spoken)]):
            line = line_of.get(spoken[position], (spoken[position],))
            others = line[1:] or line
            spoken[position] = others[1] if which[row, position] == 2 and len(others) > 1 else others[0]
        texts[row] = " ".join(spoken)
    return texts
