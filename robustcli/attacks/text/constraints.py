"""Semantic constraints on edited captions, beside the budget of words or characters.

Shapes: K edited captions, D embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from robustcli.attacks.core.edit_distance import Words
from robustcli.attacks.core.oracle import TextEncoder
from robustcli.utils.errors import UserError
from robustcli.utils.words import affixes, read_table, read_words


class SentenceEncoder(Protocol):
    """Encoder of sentences with the interface of the package sentence-transformers."""

    def encode(self, sentences: Sequence[str]) -> Any:
        """K sentences -> (K,D), a tensor or an array."""


class MinSimilarity:
    """Lower bound on the cosine similarity of the clean and the edited caption.

    Args:
        minimum: from -1 to 1.
        encoder: of the features; None: the attacked text tower. That costs a pass for each candidate, also where the
            search itself needs none, and it is the very tower that the attack fools.
    """

    def __init__(self, *, minimum: float, encoder: SentenceEncoder | None = None) -> None:
        self.minimum, self.encoder = _number_up_to_one("minimum", minimum, least=-1.0), encoder

    def __repr__(self) -> str:
        return f"MinSimilarity(minimum={self.minimum}, encoder={self.encoder!r})"

    def allowed(
        self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> Sequence[bool]:
        texts = {text: row for row, text in enumerate(dict.fromkeys([*clean, *edited]))}
        if not texts:
            return []
        with torch.no_grad():
            features = torch.as_tensor((self.encoder or encoder).encode(list(texts))).double()
            unit = F.normalize(features, dim=1)
            first, second = (unit[[texts[text] for text in side]] for side in (clean, edited))
            kept: list[bool] = ((first * second).sum(1) >= self.minimum - slack).tolist()
            return kept


class MaxShare:
    """Upper bound on the share of a caption's words that change, so that a short caption keeps most of them.

    Args:
        maximum: from 0 to 1; of the words of the clean caption, split on blanks.
    """

    def __init__(self, *, maximum: float) -> None:
        self.maximum = _number_up_to_one("maximum", maximum, least=0.0)

    def __repr__(self) -> str:
        return f"MaxShare(maximum={self.maximum})"

    def allowed(
        self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> Sequence[bool]:
        words = Words(0)
        return [
            words.count(new, old) <= self.maximum * len(old.split()) for old, new in zip(clean, edited, strict=True)
        ]


class NoAntonyms:
    """Ban on replacements by an antonym: no word comes in that is the opposite of one that goes out.

    Args:
        table: word -> its opposites, either way round; or a file: JSON of that, or lines of two words each.

    Raises:
        UserError: a file that is not there or is no such table.
    """

    def __init__(self, *, table: Mapping[str, Sequence[str]] | str | Path) -> None:
        self.table = table
        self._opposites: dict[str, set[str]] = {}
        for word, others in _read_opposites(table).items():
            for other in others:
                self._opposites.setdefault(word.lower(), set()).add(other.lower())
                self._opposites.setdefault(other.lower(), set()).add(word.lower())

    def __repr__(self) -> str:
        return f"NoAntonyms({f'{len(self.table)} words' if isinstance(self.table, Mapping) else repr(self.table)})"

    def allowed(
        self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> Sequence[bool]:
        return [self._keeps(_words(old), _words(new)) for old, new in zip(clean, edited, strict=True)]

    def _keeps(self, old: set[str], new: set[str]) -> bool:
        return all(new.isdisjoint(self._opposites.get(word, set()) - old) for word in old - new)


class NoNewWords:
    """Ban on words: an edited caption holds no word of a list that the clean one lacks, so that an edit of characters
    leaves a misspelling and never another word (after LEAF, Abad Rocamora et al. 2025: "no new English word").

    Words are compared in lower case and without the punctuation around them.

    Args:
        words: those of the language: a list, or a file with words between blanks or line ends.
        compat: the rule of LEAF's published code instead: strictly fewer words of the list than before, each counted
            as often as it stands. It forbids any edit of a caption that has none of them, and an edit beside them, but
            takes a new word where two others are broken.

    Raises:
        UserError: no word at all, or a file that cannot be read.
    """

    def __init__(self, *, words: Sequence[str] | str | Path, compat: bool = False) -> None:
        key = "attack.constraints: words"
        listed = read_words(words, key) if isinstance(words, str | Path) else words
        self.words, self.compat = words, compat
        self._list = frozenset(str(word).lower() for word in listed)
        if not self._list:
            raise UserError(f"{key} is {words!r}, which holds no word: give a list, or a file of words.")

    def __repr__(self) -> str:
        shown = repr(self.words) if isinstance(self.words, str | Path) else f"{len(self.words)} words"
        return f"NoNewWords({shown}, compat={self.compat})"

    def allowed(
        self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> Sequence[bool]:
        return [self._keeps(self._known(old), self._known(new)) for old, new in zip(clean, edited, strict=True)]

    def _keeps(self, old: Sequence[str], new: Sequence[str]) -> bool:
        return len(new) < len(old) if self.compat else set(new) <= set(old)

    def _known(self, caption: str) -> list[str]:
        """Words of the list that stand in the caption, with repetition."""
        return [core for word in caption.split() if (core := affixes(word)[1].lower()) in self._list]


def _words(caption: str) -> set[str]:
    return {affixes(word)[1].lower() for word in caption.split()}


def _number_up_to_one(name: str, value: float, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1:
        raise UserError(f"attack.constraints: {name} is {value!r}: expected a number from {least:g} to 1.")
    return float(value)


def _read_opposites(table: Mapping[str, Sequence[str]] | str | Path) -> Mapping[str, Sequence[str]]:
    key = "attack.constraints: table"
    if isinstance(table, Mapping) or Path(table).suffix == ".json":
        return read_table(table, key)
    try:
        pairs = [line.split() for line in Path(table).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{key} is {str(table)!r}, which cannot be read: {error}.") from error
    opposites: dict[str, list[str]] = {}
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2:
            raise UserError(f"{key} is {str(table)!r}: entry {number} is {' '.join(pair)!r}, expected two words.")
        opposites.setdefault(pair[0], []).append(pair[1])
    return opposites
