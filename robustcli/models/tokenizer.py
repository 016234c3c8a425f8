"""A word tokenizer for towers whose vocabulary is a data set's: CLIP's 49k byte pairs alone would be 6 million weights.

Shapes: B batch, T tokens.
"""

import string
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, START, UNKNOWN = 0, 1, 2
_FIRST_WORD = 3
_PUNCTUATION = string.punctuation + "“”„‘’‚«»…–—"


def split_words(caption: str) -> list[str]:
    """The words of a caption: lower case, split on blanks, punctuation stripped from both ends, empty ones left out."""
    stripped = (word.strip(_PUNCTUATION) for word in caption.lower().split())
    return [word for word in stripped if word]


def build_vocabulary(captions: Iterable[str], max_words: int = 8000) -> tuple[str, ...]:
    """The most frequent words, most frequent first, equal counts in alphabetical order."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ordered[:max_words])


class WordTokenizer:
    """Captions -> ids: 0 padding, 1 start, 2 unknown word, then the words; the end-of-text token has the highest id.

    A word outside the vocabulary is the unknown word. A caption with more than ``context_length - 2`` words is cut and
    keeps its end-of-text token.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int) -> None:
        self.words = tuple(dict.fromkeys(word for entry in vocabulary for word in split_words(entry)))
        self.context_length = context_length
        self.end = _FIRST_WORD + len(self.words)
        self._ids = {word: _FIRST_WORD + index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Number of ids."""
        return self.end + 1

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> Tensor:
        """(B,T) long, padded to T, the tokenizer's own context length unless another is given."""
        length = context_length or self.context_length
        rows = [self._row(split_words(caption)[: length - 2], length) for caption in captions]
        # One tensor for all rows takes a third of the time of one for each.
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)

    def _row(self, words: Sequence[str], length: int) -> list[int]:
        ids = [self._ids.get(word, UNKNOWN) for word in words]
        return [START, *ids, self.end] + [PAD] * (length - 2 - len(ids))

    def __repr__(self) -> str:
        return f"WordTokenizer({len(self.words)} words, context_length={self.context_length})"
