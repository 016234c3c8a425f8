"""Word-level augmentation of captions: EDA (Wei and Zou 2019, arXiv 1901.11196), and synonyms alone.

A caption is a list of words, each with the punctuation around it; punctuation that stands alone belongs to a word
beside it. What is changed are words: punctuation keeps its place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robustcli.data.augment.base import Augmenter
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.augment.synonyms import LookUp, SynonymSource
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_share
from robustcli.utils.seeding import derive_seed
from robustcli.utils.words import affixes

Word = tuple[str, str, str]  # punctuation before, the word itself, punctuation after
Operation = Callable[[list[Word], float, LookUp, np.random.Generator], list[Word]]


class EDA(Augmenter):
    """Easy data augmentation: new captions by synonym replacement, random insertion, random swap or random deletion.

    Each output is made by one operation from one caption: captions of the image in turn, operations in turn from one
    that is drawn for the image. An output that changes nothing is left out, as a deletion that deletes no word.

    Args:
        number: outputs of an image.
        alpha: operation (``replacement``, ``insertion``, ``swap``, ``deletion``) -> share of the words that it changes,
            in [0,1]: ``max(1, round(alpha * words))`` of them, for deletions the probability of each. 0: not used.
        synonyms, wordnet: see `SynonymSource`.

    Raises:
        UserError: a share out of range, an unknown operation, none in use, or no synonyms to be had.
    """

    def __init__(
        self, *, number: int, alpha: Mapping[str, Any], synonyms: str | None = None, wordnet: str | None = None
    ) -> None:
        self.number = at_least("number", number, 1, node="augment")
        for name in alpha:
            if name not in OPERATIONS:
                raise UserError(f"augment.alpha has {name!r}: choose among {', '.join(OPERATIONS)}.")
        shares = {name: parse_share(f"alpha.{name}", value, node="augment") for name, value in alpha.items()}
        self.alpha = {name: shares[name] for name in OPERATIONS if shares.get(name)}
        if not self.alpha:
            raise UserError("augment.alpha is 0 for every operation: give one of them a share, such as 0.1.")
        self._source = SynonymSource(synonyms, wordnet)
        self.model, self.model_sha256 = self._source.name, self._source.sha256

    def check(self, data: ImageTextData) -> None:
        self._source.of(data)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        synonyms, names = self._source.of(data), list(self.alpha)

        def change(words: list[Word], turn: int, first: int, draw: np.random.Generator) -> list[Word]:
            name = names[(first + turn) % len(names)]
            return OPERATIONS[name](words, self.alpha[name], synonyms, draw)

        return _changed(data, images, self.number, ("eda", seed), change)


class Synonyms(Augmenter):
    """New captions in which words are replaced by synonyms, each with one probability, at least one a caption.

    Args:
        number: outputs of an image, spread over its captions in turn.
        rate: probability of each word that has synonyms, in [0,1].
        synonyms, wordnet: see `SynonymSource`.

    Raises:
        UserError: a rate out of range, or no synonyms to be had.
    """

    def __init__(self, *, number: int, rate: float, synonyms: str | None = None, wordnet: str | None = None) -> None:
        self.number, self.rate = (
            at_least("number", number, 1, node="augment"),
            parse_share("rate", rate, node="augment"),
        )
        self._source = SynonymSource(synonyms, wordnet)
        self.model, self.model_sha256 = self._source.name, self._source.sha256

    def check(self, data: ImageTextData) -> None:
        self._source.of(data)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        synonyms = self._source.of(data)

        def change(words: list[Word], turn: int, first: int, draw: np.random.Generator) -> list[Word]:
            fit = [place for place, (_, core, _) in enumerate(words) if synonyms(core)]
            chosen = [place for place in fit if draw.random() < self.rate]
            if fit and not chosen:
                chosen = [fit[int(draw.integers(len(fit)))]]
            return _with_synonyms(words, chosen, synonyms, draw)

        return _changed(data, images, self.number, ("synonyms", seed), change)


def replace_synonyms(words: list[Word], alpha: float, synonyms: LookUp, draw: np.random.Generator) -> list[Word]:
    """Random words that have synonyms, each by one of its own."""
    fit = [place for place, (_, core, _) in enumerate(words) if synonyms(core)]
    chosen = draw.permutation(len(fit))[: _count(words, alpha)]
    return _with_synonyms(words, [fit[each] for each in chosen], synonyms, draw)


def insert_synonyms(words: list[Word], alpha: float, synonyms: LookUp, draw: np.random.Generator) -> list[Word]:
    """A synonym of a random word of the caption at a random place, so many times."""
    fit = [core for _, core, _ in words if synonyms(core)]
    changed = list(words)
    for _ in range(_count(words, alpha) if fit else 0):
        others = synonyms(fit[int(draw.integers(len(fit)))])
        new, place = others[int(draw.integers(len(others)))], int(draw.integers(len(changed) + 1))
        if place == len(changed):  # in front of what ends the caption
            before, core, after = changed[-1]
            changed[-1:] = [(before, core, ""), ("", new, after)]
        else:
            changed.insert(place, ("", new, ""))
    return changed


def swap_words(words: list[Word], alpha: float, synonyms: LookUp, draw: np.random.Generator) -> list[Word]:
    """Two random words in each other's place, so many times."""
    cores = [core for _, core, _ in words]
    for _ in range(_count(words, alpha) if len(words) > 1 else 0):
        one, other = draw.choice(len(words), 2, replace=False).tolist()
        cores[one], cores[other] = cores[other], cores[one]
    return [(before, core, after) for (before, _, after), core in zip(words, cores, strict=True)]


def delete_words(words: list[Word], alpha: float, synonyms: LookUp, draw: np.random.Generator) -> list[Word]:
    """Every word left out with probability ``alpha``, but for a random one where none would be left."""
    kept = draw.random(len(words)) >= alpha
    if not kept.any():
        kept[int(draw.integers(len(words)))] = True
    left: list[Word] = []
    for (before, core, after), keep in zip(words, kept.tolist(), strict=True):
        if keep:
            left.append((before, core, after))
        elif left:  # the punctuation of a deleted word stays, once
            left[-1] = (*left[-1][:2], left[-1][2] or after)
    left[-1] = (*left[-1][:2], words[-1][2])  # what ends the caption still ends it
    return left


OPERATIONS: dict[str, Operation] = {
    "replacement": replace_synonyms,
    "insertion": insert_synonyms,
    "swap": swap_words,
    "deletion": delete_words,
}


def split_words(caption: str) -> list[Word]:
    """Words of a caption with their punctuation; empty where it has no word."""
    words: list[Word] = []
    opening = ""  # punctuation that stands before the first word
    for token in caption.split():
        before, core, after = affixes(token)
        if core:
            words.append((f"{opening}{before}", core, after))
            opening = ""
        elif words:
            words[-1] = (*words[-1][:2], f"{words[-1][2]} {token}")
        else:
            opening += f"{token} "
    return words


def join_words(words: Sequence[Word]) -> str:
    """The caption of `split_words`, with single spaces."""
    return " ".join("".join(word) for word in words)


def _changed(
    data: ImageTextData,
    images: Sequence[int],
    number: int,
    stream: tuple[str, int],
    change: Callable[[list[Word], int, int, np.random.Generator], list[Word]],
) -> list[AugmentedPair]:
    """Outputs of each image: output number ``turn`` from caption ``turn``, counted around, where it changes a word.

    Every output has a generator of its own: the first of more outputs are those of fewer.
    """
    captions_of = data.captions_of()
    made: list[AugmentedPair] = []
    for image in images:
        name, own = data.image_ids[image], captions_of[image].tolist()
        first = derive_seed(*stream, name)
        for turn in range(number if own else 0):
            row = own[turn % len(own)]
            words = split_words(data.captions[row])
            draw = np.random.default_rng(derive_seed(*stream, name, turn))
            new = change(words, turn, first, draw) if words else words
            if new != words:
                made.append(AugmentedPair(source=image, source_caption=row, caption=join_words(new)))
    return made


def _with_synonyms(words: list[Word], places: Sequence[int], synonyms: LookUp, draw: np.random.Generator) -> list[Word]:
    changed = list(words)
    for place in places:
        before, core, after = words[place]
        others = synonyms(core)
        new = others[int(draw.integers(len(others)))]
        changed[place] = (before, new[:1].upper() + new[1:] if core[0].isupper() else new, after)
    return changed


def _count(words: Sequence[Word], alpha: float) -> int:
    return max(1, round(alpha * len(words)))
