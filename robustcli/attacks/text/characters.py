"""Character edits: which letter of a caption becomes which other one, searched for many captions at once.

Shapes: M captions, K variants.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from robustcli.attacks.core.edit_distance import Characters
from robustcli.attacks.core.oracle import TextEncoder, TextObjective
from robustcli.attacks.core.retrieval import TextAttack
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.text.edits import Draft, Variant, accept_best, admitted, judge_clean, losses, outcome
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of

SEARCHES = ("charmer", "typos")
ALPHABET = string.ascii_lowercase + string.digits + " .,'-"
_PROBE = " "
_TEXTS_AT_ONCE = 1 << 14  # of all captions together; the bound of the memory
_KEYS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))  # rows, and how far each is moved to the right

Slot = tuple[int, int]  # the part of a caption that an edit replaces, from and to; empty between two characters
Edit = tuple[Slot, str, int]  # a slot, what stands there afterwards, and what it costs of the budget


@dataclass
class _Draft(Draft):
    """A caption, and how much of the budget its edits took."""

    spent: int = 0


@dataclass(frozen=True)
class _Variant(Variant[_Draft]):
    """A draft with one more edit."""

    cost: int

    def accept(self, loss: float) -> None:
        super().accept(loss)
        self.draft.spent += self.cost


@dataclass(frozen=True, kw_only=True)
class CharacterEdits(TextAttack):
    """Edits as many characters as the threat model allows, greedily: the best single edit, then the best beside it.

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

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        drafts = [_Draft(row, caption) for row, caption in enumerate(captions)]
        judge_clean(encoder, objective, drafts)
        together = max(1, _TEXTS_AT_ONCE // (self.positions * (len(self.alphabet) + 1)))
        for start in range(0, len(drafts), together):
            self._climb(encoder, objective, drafts[start : start + together], threat.characters)
        return outcome(drafts)

    def _climb(self, encoder: TextEncoder, objective: TextObjective, drafts: list[_Draft], most: int) -> None:
        while drafts:
            scratch = TextEncoder(encoder.model)  # hundreds of texts a caption, and hardly any is met again
            slots = self._ranked_slots(scratch, objective, drafts)
            edited = [
                _Variant(draft, _edited(draft.text, slot, new), cost)
                for draft, own in zip(drafts, slots, strict=True)
                for slot, new, cost in self._edits(draft.text, own)
                if draft.spent + cost <= most
            ]
            taken = accept_best(scratch, objective, admitted(scratch, edited, self.constraints))
            drafts = [draft for draft in taken if draft.spent < most]

    def _ranked_slots(
        self, encoder: TextEncoder, objective: TextObjective, drafts: Sequence[_Draft]
    ) -> list[list[Slot]]:
        """Of each draft the places where a blank hurts most, at most ``positions``, in the order of the text."""
        slots = [self._slots(draft.text) for draft in drafts]
        owners = [draft for draft, own in zip(drafts, slots, strict=True) for _ in own]
        probes = [_probed(draft.text, slot) for draft, own in zip(drafts, slots, strict=True) for slot in own]
        scores = iter(losses(encoder, objective, owners, probes) if probes else [])
        scored = [[(next(scores), slot) for slot in own] for own in slots]
        best = [sorted(own, key=lambda pair: -pair[0])[: self.positions] for own in scored]
        return [sorted(slot for _, slot in own) for own in best]

    def _slots(self, text: str) -> list[Slot]:
        if self.search == "typos":
            return [(at, at + 1) for at, letter in enumerate(text) if letter.lower() in NEIGHBOURS]
        return [(start, stop) for start in range(len(text) + 1) for stop in (start, start + 1) if stop <= len(text)]

    def _edits(self, text: str, slots: Sequence[Slot]) -> Iterator[Edit]:
        for slot in slots:
            yield from self._slips(text, slot) if self.search == "typos" else self._replacements(text, slot)

    def _replacements(self, text: str, slot: Slot) -> Iterator[Edit]:
        old = text[slice(*slot)]
        return ((slot, new, 1) for new in dict.fromkeys(["", *self.alphabet]) if new != old)

    def _slips(self, text: str, slot: Slot) -> Iterator[Edit]:
        letter, after = text[slot[0]], text[slot[1] : slot[1] + 1]
        for other in NEIGHBOURS[letter.lower()]:
            yield slot, other if letter.islower() else other.upper(), 1
        if after.isalpha() and after != letter:
            yield (slot[0], slot[1] + 1), after + letter, 2


def _edited(text: str, slot: Slot, new: str) -> str:
    return text[: slot[0]] + new + text[slot[1] :]


def _probed(text: str, slot: Slot) -> str:
    """A blank in the slot, or none where one stands there."""
    return _edited(text, slot, "" if text[slice(*slot)] == _PROBE else _PROBE)


def _neighbours() -> dict[str, str]:
    """Letter -> the letters whose keys touch its own."""
    places = [(letter, x + shift, y) for y, (row, shift) in enumerate(_KEYS) for x, letter in enumerate(row)]
    return {letter: "".join(other for other, x2, y2 in places if _touch(x - x2, y - y2)) for letter, x, y in places}


def _touch(across: float, down: int) -> bool:
    return (down == 0 and abs(across) == 1) or (abs(down) == 1 and abs(across) < 1)


NEIGHBOURS: Mapping[str, str] = _neighbours()
