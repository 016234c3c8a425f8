"""Edit budgets of captions: Levenshtein distance in words or characters, counted on the output string.

Shapes: M captions.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustcli.utils.errors import UserError

# Letters of scripts that put no blank between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class EditBudget(ABC):
    """Budget of ``n`` edits (insert, delete, replace) a caption, counted on the output string.

    Raises:
        UserError: an ``n`` that is no whole number, or negative.
    """

    key: ClassVar[str]
    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise UserError(f"threat.{self.key} is {self.n!r}: expected a whole number, 0 or more.")

    @abstractmethod
    def count(self, caption: str, clean: str) -> int:
        """Fewest edits between both."""

    def misfits(self, captions: Sequence[str]) -> int:
        """Number of captions that have too few of the unit for a budget to mean anything."""
        return 0

    def audit(self, captions: Sequence[str], clean: Sequence[str]) -> Tensor:
        """(M,) long: number of edits of each caption in the output of an attack.

        Raises:
            RuntimeError: more than ``n`` edits, or a caption lost: a fault of the attack.
        """
        if len(captions) != len(clean):
            raise RuntimeError(f"the attack turned {len(clean)} captions into {len(captions)}")
        edits = [self.count(new, old) for new, old in zip(captions, clean, strict=True)]
        worst = max(range(len(edits)), key=edits.__getitem__, default=None)
        if worst is not None and edits[worst] > self.n:
            raise RuntimeError(f"{edits[worst]} edits, {self.n} allowed: {clean[worst]!r} became {captions[worst]!r}")
        return torch.tensor(edits, dtype=torch.long)


class Words(EditBudget):
    """Budget of ``n`` words (split on blanks) replaced, inserted or deleted."""

    key = "words"

    def misfits(self, captions: Sequence[str]) -> int:
        """Captions of a script without blanks, of which one word, as it counts here, is more than half."""
        return sum(
            any(len(_UNSPACED.findall(word)) >= 3 and 2 * len(word) > len("".join(words)) for word in words)
            for words in (caption.split() for caption in captions)
        )

    def count(self, caption: str, clean: str) -> int:
        return 0 if caption == clean else levenshtein(caption.split(), clean.split())


class Characters(EditBudget):
    """Budget of ``n`` characters replaced, inserted or deleted; a swap of two neighbours is two edits."""

    key = "characters"

    def count(self, caption: str, clean: str) -> int:
        return 0 if caption == clean else levenshtein(caption, clean)


def levenshtein(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance: fewest insertions, deletions and replacements that turn one sequence into the other."""
    first, second = _without_common_ends(first, second)
    if not first or not second:
        return len(first) + len(second)
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _without_common_ends(first: Sequence[str], second: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    start, shorter = 0, min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    return first[start : len(first) - end], second[start : len(second) - end]
