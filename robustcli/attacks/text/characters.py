"""Greedy character edits (after Charmer, Abad Rocamora et al. 2024) and typing errors, many captions at once.

Shapes: M captions, K candidate edits.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from robustcli.attacks.core.edit_distance import Characters
from robustcli.attacks.core.oracle import TextEncoder, TextObjective
from robustcli.attacks.core.retrieval import TextAttack
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.text.edits import (
    CandidateEdit,
    EditedCaption,
    admissible,
    apply_best,
    edit_output,
    losses,
    score_clean,
)
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of

SEARCHES = ("charmer", "typos")
ALPHABET = string.ascii_lowercase + string.digits + " .,'-"
_PROBE = " "
_TEXTS_AT_ONCE = 1 << 14  # of all captions together; the bound of the memory
_KEYS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))  # rows, and how far each is moved to the right

Slot = tuple[int, int]  # start and stop of the characters that an edit replaces; empty between two characters
SlotEdit = tuple[Slot, str, int]  # a slot, its new text, and the number of character edits that it counts


@dataclass
class _EditedCharacters(EditedCaption):
    """A caption, and the number of characters edited so far."""

    used: int = 0


@dataclass(frozen=True)
class _CharacterEdit(CandidateEdit[_EditedCharacters]):
    """A caption with one more slot replaced."""

    cost: int

    def apply(self, loss: float) -> None:
        super().apply(loss)
        self.caption.used += self.cost


@dataclass(frozen=True, kw_only=True)
class CharacterEdits(TextAttack):
    """Greedy edits of as many characters as the threat model allows: the best single edit, then the best beside it.

    In each round a blank is put into every place, the ``positions`` where that raises the loss most are kept, and all
    edits there are tried (Charmer, Abad Rocamora et al. 2024). An edit is kept only if it raises the loss, so a caption
    is never worse off than clean; one that the tokenizer does not see is none.

    Args:
        search: ``charmer`` replaces each character and puts in one before, between and behind them, by all of
            ``alphabet``, and leaves them out; ``typos`` knows only slips of a hand on a QWERTY keyboard: the key beside
            the right one, and two letters in the wrong order.
        positions: places a caption and round whose edits are tried, 1 or more; every place costs a forward pass, and
            every edit there another one.
        alphabet: what ``charmer`` puts in; ``typos`` does not read it.
        max_characters: what a call may change that is given no threat model; a swap of two neighbours counts two.
        objective, constraints, seed: see `TextAttack`.

    Raises:
        UserError: an unknown search or objective, a number out of range, or an empty alphabet.
    """

    unit = "characters"

    search: str = "charmer"
    positions: int = 20
    alphabet: str = ALPHABET
    max_characters: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("search", self.search, SEARCHES)
        at_least("positions", self.positions, 1)
        Characters(self.max_characters)
        if not isinstance(self.alphabet, str) or not self.alphabet:
            raise UserError(f"attack.alphabet is {self.alphabet!r}: expected at least one character, in quotes.")

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(eps=0, characters=self.max_characters)

    def editable(self, captions: Sequence[str]) -> Sequence[int]:
        return [sum(stop > start for start, stop in self._slots(caption)) for caption in captions]

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        edited = [_EditedCharacters(row, caption) for row, caption in enumerate(captions)]
        score_clean(encoder, objective, edited)
        captions_per_pass = max(1, _TEXTS_AT_ONCE // (self.positions * (len(self.alphabet) + 1)))
        for start in range(0, len(edited), captions_per_pass):
            self._greedy_search(encoder, objective, edited[start : start + captions_per_pass], threat.characters)
        return edit_output(edited)

    def _greedy_search(
        self, encoder: TextEncoder, objective: TextObjective, edited: list[_EditedCharacters], budget: int
    ) -> None:
        while edited:  # a round is a forward pass a slot, and one a candidate at the ``positions`` best slots
            scratch = TextEncoder(encoder.model)  # its cache is dropped after the round: hardly any text is met again
            slots = self._ranked_slots(scratch, objective, edited)
            candidates = [
                _CharacterEdit(caption, _replace_slot(caption.text, slot, new), cost)
                for caption, caption_slots in zip(edited, slots, strict=True)
                for slot, new, cost in self._edits(caption.text, caption_slots)
                if caption.used + cost <= budget
            ]
            improved = apply_best(scratch, objective, admissible(scratch, candidates, self.constraints))
            edited = [caption for caption in improved if caption.used < budget]

    def _ranked_slots(
        self, encoder: TextEncoder, objective: TextObjective, edited: Sequence[_EditedCharacters]
    ) -> list[list[Slot]]:
        """Slots of each caption where a blank raises the loss most, at most ``positions``, in the order of the text."""
        slots = [self._slots(caption.text) for caption in edited]
        owners = [caption for caption, caption_slots in zip(edited, slots, strict=True) for _ in caption_slots]
        probes = [
            _with_blank(caption.text, slot)
            for caption, caption_slots in zip(edited, slots, strict=True)
            for slot in caption_slots
        ]
        scores = iter(losses(encoder, objective, owners, probes) if probes else [])
        scored = [[(next(scores), slot) for slot in caption_slots] for caption_slots in slots]
        best = [sorted(caption_slots, key=lambda pair: -pair[0])[: self.positions] for caption_slots in scored]
        return [sorted(slot for _, slot in caption_slots) for caption_slots in best]

    def _slots(self, text: str) -> list[Slot]:
        if self.search == "typos":
            return [(at, at + 1) for at, letter in enumerate(text) if letter.lower() in NEIGHBOURS]
        return [(start, stop) for start in range(len(text) + 1) for stop in (start, start + 1) if stop <= len(text)]

    def _edits(self, text: str, slots: Sequence[Slot]) -> Iterator[SlotEdit]:
        for slot in slots:
            yield from self._typos(text, slot) if self.search == "typos" else self._replacements(text, slot)

    def _replacements(self, text: str, slot: Slot) -> Iterator[SlotEdit]:
        old = text[slice(*slot)]
        return ((slot, new, 1) for new in dict.fromkeys(["", *self.alphabet]) if new != old)

    def _typos(self, text: str, slot: Slot) -> Iterator[SlotEdit]:
        letter, after = text[slot[0]], text[slot[1] : slot[1] + 1]
        for other in NEIGHBOURS[letter.lower()]:
            yield slot, other if letter.islower() else other.upper(), 1
        if after.isalpha() and after != letter:
            yield (slot[0], slot[1] + 1), after + letter, 2


def _replace_slot(text: str, slot: Slot, new: str) -> str:
    return text[: slot[0]] + new + text[slot[1] :]


def _with_blank(text: str, slot: Slot) -> str:
    """The text with a blank in the slot, or without it where one stands there (the probe of a position)."""
    return _replace_slot(text, slot, "" if text[slice(*slot)] == _PROBE else _PROBE)


def _neighbours() -> dict[str, str]:
    """Letters on the keys that touch a letter's own, by letter."""
    places = [(letter, x + shift, y) for y, (row, shift) in enumerate(_KEYS) for x, letter in enumerate(row)]
    return {letter: "".join(other for other, x2, y2 in places if _touch(x - x2, y - y2)) for letter, x, y in places}


def _touch(across: float, down: int) -> bool:
    return (down == 0 and abs(across) == 1) or (abs(down) == 1 and abs(across) < 1)


NEIGHBOURS: Mapping[str, str] = _neighbours()
