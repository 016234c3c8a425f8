"""Greedy word substitution: exhaustive, by gradient (HotFlip) or by word importance (BERT-Attack).

All captions are searched together, a round is one batch of forward passes.

Shapes: M captions, K candidate edits, T tokens, V width of the token table.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.attacks.core.edit_distance import EditBudget, Words
from robustcli.attacks.core.losses import divergence
from robustcli.attacks.core.oracle import TextEncoder, TextObjective
from robustcli.attacks.core.retrieval import TextAttack
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.text.candidates import CandidateSource
from robustcli.attacks.text.edits import (
    CandidateEdit,
    EditedCaption,
    admissible,
    apply_best,
    edit_output,
    rows,
    score_clean,
)
from robustcli.attacks.text.hotflip import first_order
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of
from robustcli.utils.words import STOP_WORDS, affixes

SEARCHES = ("exhaustive", "hotflip", "importance")
_MASK = "[UNK]"  # as in the published code of BERT-Attack


@dataclass
class _EditedWords(EditedCaption):
    """A caption, its words as they are now, and the positions of those that were replaced."""

    replacements: Mapping[int, Sequence[str]] = field(default_factory=dict)  # by position
    replaced: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words = self.clean.split()

    def with_word(self, position: int, word: str) -> str:
        return " ".join([*self.words[:position], word, *self.words[position + 1 :]])


@dataclass(frozen=True)
class _WordEdit(CandidateEdit[_EditedWords]):
    """A caption with one more word replaced."""

    position: int
    word: str

    def apply(self, loss: float) -> None:
        super().apply(loss)
        self.caption.words[self.position] = self.word
        self.caption.replaced.add(self.position)


@dataclass(frozen=True, kw_only=True)
class WordSubstitution(TextAttack):
    """Greedy substitution of as many words of a caption as the threat model allows: the best single replacement, then
    the best one beside it, and so on.

    A replacement is kept only if it raises the loss, so a caption is never worse off than clean. Stop words stay and
    are not put in; an edit that the tokenizer does not see (beyond its limit, or lost in lower case) is none. Ties
    fall to the earlier candidate.

    Args:
        search: ``exhaustive`` tries every candidate at every position; ``hotflip`` ranks them by one gradient through
            the token embeddings and tries the ``top_k`` best (Ebrahimi et al. 2018); ``importance`` visits the words
            by how far the embedding moves without them and takes the best candidate of each (Li et al. 2020,
            BERT-Attack).
        top_k: candidates a caption and round that ``hotflip`` verifies by a forward pass; 0: the first in rank is
            taken unverified where its gradient promises a rise, which costs no forward pass but may lower the loss.
        candidates: where replacements come from.
        protected: lower-case words that are neither replaced nor put in.
        max_words: what a call may change that is given no threat model.
        objective, constraints, seed: see `TextAttack`.

    Raises:
        UserError: an unknown search or objective, or a number out of range.
    """

    unit = "words"
    needs_candidates = True

    search: str = "exhaustive"
    top_k: int = 5
    candidates: CandidateSource | None = None
    protected: AbstractSet[str] = field(default=STOP_WORDS, repr=False)
    max_words: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("search", self.search, SEARCHES)
        at_least("top_k", self.top_k, 0)
        Words(self.max_words)

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(eps=0, words=self.max_words)

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        edited = self._unedited(captions)
        searches = {"exhaustive": self._exhaustive, "hotflip": self._hotflip, "importance": self._by_importance}
        searches[self.search](encoder, objective, edited, threat.text)
        return edit_output(edited)

    def editable(self, captions: Sequence[str]) -> Sequence[int]:
        return [len(caption.replacements) for caption in self._unedited(captions)]

    def source(self) -> CandidateSource:
        """The source of replacements.

        Raises:
            UserError: none was given.
        """
        if self.candidates is None:
            raise UserError("candidates are missing: give a source of words, such as a synonym table.")
        return self.candidates

    def _unedited(self, captions: Sequence[str]) -> list[_EditedWords]:
        replacements = self.source()(captions)
        return [
            _EditedWords(row, caption, replacements=self._allowed_replacements(caption.split(), pairs))
            for row, (caption, pairs) in enumerate(zip(captions, replacements, strict=True))
        ]

    def _allowed_replacements(self, words: Sequence[str], pairs: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
        """Replacements by position, each once, without those that are protected or differ in case alone."""
        allowed: dict[int, dict[str, None]] = {}
        for position, word in pairs:
            old = words[position]
            if word.lower() != old.lower() and not self._is_protected(old) and not self._is_protected(word):
                allowed.setdefault(position, {})[word] = None
        return {position: list(allowed[position]) for position in sorted(allowed)}

    def _is_protected(self, word: str) -> bool:
        core = affixes(word)[1].lower()
        return not core or core in self.protected

    def _exhaustive(
        self, encoder: TextEncoder, objective: TextObjective, edited: list[_EditedWords], budget: EditBudget
    ) -> None:
        score_clean(encoder, objective, edited)
        for _ in range(budget.n):  # a forward pass a candidate; no gradients
            edited = apply_best(encoder, objective, self._candidate_edits(encoder, edited, budget))

    def _hotflip(
        self, encoder: TextEncoder, objective: TextObjective, edited: list[_EditedWords], budget: EditBudget
    ) -> None:
        for _ in range(budget.n):
            edited = [caption for caption in edited if caption.replacements]
            if not edited:
                return
            texts = [caption.text for caption in edited]
            # A round is one forward and backward pass a caption, and ``top_k`` forward passes to verify the ranking.
            caption_losses, gradient, tokens = encoder.embedding_gradient(texts, objective, rows(edited, encoder))
            for caption, loss in zip(edited, caption_losses.tolist(), strict=True):
                caption.loss, caption.queries, caption.gradients = loss, caption.queries + 1, caption.gradients + 1
            candidates = self._candidate_edits(encoder, edited, budget)
            if not candidates:
                return
            row_of = {caption.row: index for index, caption in enumerate(edited)}
            caption_rows = torch.tensor([row_of[candidate.caption.row] for candidate in candidates])
            candidate_tokens = encoder.model.tokenize([candidate.text for candidate in candidates])
            scores = first_order(encoder, tokens[caption_rows], candidate_tokens, gradient, caption_rows)
            ranked = _ranked_edits(candidates, scores.tolist())
            if self.top_k:
                chosen = [candidate for group in ranked for candidate, _ in group[: self.top_k]]
                edited = apply_best(encoder, objective, chosen)
            else:
                edited = _apply_unverified(ranked)

    def _by_importance(
        self, encoder: TextEncoder, objective: TextObjective, edited: list[_EditedWords], budget: EditBudget
    ) -> None:
        score_clean(encoder, objective, edited)
        orders = _importance_order(encoder, edited)  # once, on the clean captions: edits do not reorder the visits
        while True:
            active = [caption for caption in edited if orders[caption.row] and len(caption.replaced) < budget.n]
            if not active:
                return
            # A forward pass a candidate of the visited word; a word that no candidate improves costs no edit.
            visited = {caption.row: orders[caption.row].pop(0) for caption in active}
            apply_best(encoder, objective, self._candidate_edits(encoder, active, budget, visited))

    def _candidate_edits(
        self,
        encoder: TextEncoder,
        edited: Sequence[_EditedWords],
        budget: EditBudget,
        at: Mapping[int, int] | None = None,
    ) -> list[_WordEdit]:
        """`admissible` edits of one more word of each caption, at any position or at its position in ``at`` alone."""
        candidates = [
            _WordEdit(caption, caption.with_word(position, word), position, word)
            for caption in edited
            for position, words in caption.replacements.items()
            if position not in caption.replaced and (at is None or at[caption.row] == position)
            for word in words
        ]
        return admissible(encoder, [edit for edit in candidates if _within(budget, edit)], self.constraints)


def _within(budget: EditBudget, candidate: _WordEdit) -> bool:
    """True if the edit is within the budget: two words in place of one are two edits, which the rounds do not bound."""
    text, clean = candidate.text, candidate.caption.clean
    return len(text.split()) == len(clean.split()) or budget.count(text, clean) <= budget.n


def _apply_unverified(ranked_edits: Iterable[list[tuple[_WordEdit, float]]]) -> list[_EditedWords]:
    firsts = [group[0] for group in ranked_edits if group[0][1] > 0]
    for candidate, score in firsts:
        candidate.apply(candidate.caption.loss + score)
    return [candidate.caption for candidate, _ in firsts]


def _ranked_edits(candidates: Sequence[_WordEdit], scores: Sequence[float]) -> list[list[tuple[_WordEdit, float]]]:
    """The candidate edits of each caption with their scores, the highest first."""
    groups: dict[int, list[tuple[_WordEdit, float]]] = {}
    for candidate, score in zip(candidates, scores, strict=True):
        groups.setdefault(candidate.caption.row, []).append((candidate, score))
    return [sorted(group, key=lambda pair: -pair[1]) for group in groups.values()]


def _importance_order(encoder: TextEncoder, edited: Sequence[_EditedWords]) -> dict[int, list[int]]:
    """Positions of each caption by falling KL(clean || caption with "[UNK]" there); one forward pass a position that
    has replacements.
    """
    masked = [(caption, position) for caption in edited for position in caption.replacements]
    orders: dict[int, list[int]] = {caption.row: [] for caption in edited}
    if not masked:
        return orders
    without = encoder.encode([caption.with_word(position, _MASK) for caption, position in masked])
    scores = divergence(encoder.encode([caption.text for caption, _ in masked]), without).tolist()
    for (caption, position), _ in sorted(zip(masked, scores, strict=True), key=lambda pair: -pair[1]):
        orders[caption.row].append(position)
        caption.queries += 1
    return orders
