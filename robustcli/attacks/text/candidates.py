"""Candidate sources of word substitution: a synonym table, and nearest neighbours in the token embeddings.

The answers of a source depend on the caption alone, so they can be cached.

Shapes: V width of the token table, K words.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.oracle import of_words
from robustcli.attacks.core.pairs import DualEncoderLike
from robustcli.utils.errors import UserError
from robustcli.utils.words import affixes, read_table, read_words

Replacements = list[tuple[int, str]]  # (position of the word, its replacement), best first within a position


class CandidateSource(Protocol):
    """Replacements for the words of captions; they depend on the caption alone.

    A class that takes from the data set or from the model has a classmethod ``build(settings, data, model, words)``,
    which makes the source of a config: ``settings`` as the config has them, ``data`` a `CaptionedData`, ``words``
    counts those of its captions, most frequent first.
    """

    @property
    def fingerprint(self) -> str:
        """Name of the source and of all that its answers depend on, the key of a cache."""

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        """Replacements for each caption: positions in ``caption.split()``, and the words with their punctuation."""


class CaptionedData(Protocol):
    """The part of a captioned data set that candidate sources read."""

    name: str
    captions: Sequence[str]
    synonyms: Mapping[str, Sequence[str]] | None


def digest(kind: str, *parts: object) -> str:
    """``kind`` and a hash of ``parts`` (plain JSON data)."""
    return f"{kind}-{hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]}"


class SynonymTable:
    """A table of words that may stand for each other, looked up in lower case, punctuation kept.

    Args:
        table: word -> words, or a JSON file of that; None where a run is to fill in the data set's own.

    Raises:
        UserError: a file that is not there or is no such table.
    """

    def __init__(self, table: Mapping[str, Sequence[str]] | str | Path | None = None) -> None:
        self.table = table
        self._words = None if table is None else _lower(read_table(table, "candidates.table"))

    @classmethod
    def build(
        cls,
        settings: Mapping[str, Any],
        data: CaptionedData,
        model: DualEncoderLike,
        words: Callable[[], Sequence[str]],
    ) -> Self:
        """The source of a config; where ``table`` is null it has the synonyms of ``data``.

        Raises:
            UserError: no table, and ``data`` brings no synonyms.
        """
        if settings.get("table") is not None:
            return cls(**settings)
        if data.synonyms is None:
            raise UserError(
                f"dataset {data.name} brings no synonyms: choose candidates=masked_lm "
                "candidates.name_or_path=NAME_OR_FOLDER, candidates=neighbours, or candidates.table=FILE.json; "
                "attacks on images alone need none."
            )
        return cls(**{**settings, "table": {word: list(others) for word, others in data.synonyms.items()}})

    @property
    def fingerprint(self) -> str:
        return digest("synonyms", sorted(self._table_in_use().items()))

    def __repr__(self) -> str:
        return f"SynonymTable({f'{len(self.table)} words' if isinstance(self.table, Mapping) else repr(self.table)})"

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        return [look_up(self._table_in_use(), caption) for caption in captions]

    def _table_in_use(self) -> Mapping[str, list[str]]:
        if self._words is None:
            raise UserError("candidates.table is null, and no data set has filled it in: give a JSON file.")
        return self._words


class EmbeddingNeighbours:
    """Nearest neighbours of each word of a list, by cosine in the token table of a text tower as it is now.

    Args:
        model: whose tower; a word of several tokens is their mean.
        words: the words that may stand for each other: a sequence, or a file of one word a line.
        top_k: neighbours a word.
    """

    def __init__(self, model: DualEncoderLike, words: Sequence[str] | str | Path, top_k: int = 10) -> None:
        listed = read_words(words, "candidates.words") if isinstance(words, str | Path) else words
        self.words = list(dict.fromkeys(word.lower() for word in listed))
        self.top_k = top_k
        self._neighbours = _nearest(self.words, _word_vectors(model, self.words), top_k)

    @classmethod
    def build(
        cls,
        settings: Mapping[str, Any],
        data: CaptionedData,
        model: DualEncoderLike,
        words: Callable[[], Sequence[str]],
    ) -> Self:
        """The source of a config, in the token table of ``model``; where it names no words, of those of ``data``."""
        return cls(model, **{**settings, "words": settings.get("words") or words()})

    @property
    def fingerprint(self) -> str:
        return digest("neighbours", sorted(self._neighbours.items()))

    def __repr__(self) -> str:
        return f"EmbeddingNeighbours({len(self.words)} words, top_k={self.top_k})"

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        return [look_up(self._neighbours, caption) for caption in captions]


def look_up(table: Mapping[str, Sequence[str]], caption: str) -> Replacements:
    """Replacements for one caption from a table of lower-case words, punctuation kept."""
    replacements: Replacements = []
    for position, word in enumerate(caption.split()):
        before, core, after = affixes(word)
        replacements.extend((position, f"{before}{other}{after}") for other in table.get(core.lower(), ()))
    return replacements


def _lower(table: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {str(word).lower(): [str(other) for other in others] for word, others in table.items()}


@torch.no_grad()
def _word_vectors(model: DualEncoderLike, words: Sequence[str]) -> Tensor:
    """(K,V): the mean vector of each word's own tokens, that is without start, end and padding."""
    tokens = model.tokenize(words)
    inside = of_words(tokens, model.tokenize([""]))
    table = model.token_embedding().weight.detach()
    vectors = [table[row[span].to(table.device)].mean(0) for row, span in zip(tokens, inside, strict=True)]
    return torch.stack(vectors).nan_to_num()


def _nearest(words: Sequence[str], vectors: Tensor, top_k: int) -> dict[str, list[str]]:
    unit = F.normalize(vectors, dim=1)
    neighbours: dict[str, list[str]] = {}
    for start in range(0, len(words), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -torch.inf
        best = cosines.topk(min(top_k, len(words) - 1), dim=1).indices.tolist()
        neighbours.update(zip(words[start : start + 1024], ([words[j] for j in row] for row in best), strict=True))
    return neighbours
