"""Word substitution: which word of a caption becomes which other one, searched for all captions at once.

Shapes: M captions, K variants, T tokens, V vectors of the token table.
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
from robustcli.attacks.text.candidates import CandidateSource, affixes
from robustcli.attacks.text.edits import Draft, Variant, accept_best, admitted, judge_clean, outcome, rows
from robustcli.attacks.text.hotflip import first_order
from robustcli.attacks.text.stopwords import STOP_WORDS
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of

SEARCHES = ("exhaustive", "hotflip", "importance")
_MASK = "[UNK]"


@dataclass
class _Draft(Draft):
    """A caption, its words as they are now, and which of them were replaced."""

    options: Mapping[int, Sequence[str]] = field(default_factory=dict)  # position -> replacements
    edited: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words = self.clean.split()

    def with_word(self, position: int, word: str) -> str:
        return " ".join([*self.words[:position], word, *self.words[position + 1 :]])


@dataclass(frozen=True)
class _Variant(Variant[_Draft]):
    """A draft with one more word replaced."""

    position: int
    word: str

    def accept(self, loss: float) -> None:
        super().accept(loss)
        self.draft.words[self.position] = self.word
        self.draft.edited.add(self.position)


@dataclass(frozen=True, kw_only=True)
class WordSubstitution(TextAttack):
    """Replaces as many words of a caption as the threat model allows, greedily: the best single replacement, then the
    best one beside it, and so on.

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
        drafts = self._drafts(captions)
        searches = {"exhaustive": self._exhaustive, "hotflip": self._hotflip, "importance": self._by_importance}
        searches[self.search](encoder, objective, drafts, threat.text)
        return outcome(drafts)

    def source(self) -> CandidateSource:
        """Where replacements come from.

        Raises:
            UserError: nowhere.
        """
        if self.candidates is None:
            raise UserError("candidates are missing: give a source of words, such as a synonym table.")
        return self.candidates

    def _drafts(self, captions: Sequence[str]) -> list[_Draft]:
        found = self.source()(captions)
        return [
            _Draft(row, caption, options=self._options(caption.split(), pairs))
            for row, (caption, pairs) in enumerate(zip(captions, found, strict=True))
        ]

    def _options(self, words: Sequence[str], pairs: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
        """The replacements that are allowed, by position, each once."""
        options: dict[int, dict[str, None]] = {}
        for position, word in pairs:
            old = words[position]
            if word.lower() != old.lower() and not self._is_protected(old) and not self._is_protected(word):
                options.setdefault(position, {})[word] = None
        return {position: list(options[position]) for position in sorted(options)}

    def _is_protected(self, word: str) -> bool:
        core = affixes(word)[1].lower()
        return not core or core in self.protected

    def _exhaustive(
        self, encoder: TextEncoder, objective: TextObjective, drafts: list[_Draft], budget: EditBudget
    ) -> None:
        judge_clean(encoder, objective, drafts)
        for _ in range(budget.n):
            drafts = accept_best(encoder, objective, self._variants(encoder, drafts, budget))

    def _hotflip(
        self, encoder: TextEncoder, objective: TextObjective, drafts: list[_Draft], budget: EditBudget
    ) -> None:
        for _ in range(budget.n):
            drafts = [draft for draft in drafts if draft.options]
            if not drafts:
                return
            texts = [draft.text for draft in drafts]
            found, gradient, tokens = encoder.embedding_gradient(texts, objective, rows(drafts, encoder))
            for draft, loss in zip(drafts, found.tolist(), strict=True):
                draft.loss, draft.queries, draft.gradients = loss, draft.queries + 1, draft.gradients + 1
            variants = self._variants(encoder, drafts, budget)
            if not variants:
                return
            place = {draft.row: index for index, draft in enumerate(drafts)}
            own = torch.tensor([place[variant.draft.row] for variant in variants])
            after = encoder.model.tokenize([variant.text for variant in variants])
            scores = first_order(encoder, tokens[own], after, gradient, own)
            ranked = _ranked(variants, scores.tolist())
            if self.top_k:
                chosen = [variant for group in ranked for variant, _ in group[: self.top_k]]
                drafts = accept_best(encoder, objective, chosen)
            else:
                drafts = _accept_unverified(ranked)

    def _by_importance(
        self, encoder: TextEncoder, objective: TextObjective, drafts: list[_Draft], budget: EditBudget
    ) -> None:
        judge_clean(encoder, objective, drafts)
        orders = _importance(encoder, drafts)
        while True:
            active = [d for d in drafts if orders[d.row] and len(d.edited) < budget.n]
            if not active:
                return
            visited = {draft.row: orders[draft.row].pop(0) for draft in active}
            accept_best(encoder, objective, self._variants(encoder, active, budget, visited))

    def _variants(
        self,
        encoder: TextEncoder,
        drafts: Sequence[_Draft],
        budget: EditBudget,
        at: Mapping[int, int] | None = None,
    ) -> list[_Variant]:
        """All drafts with one more replacement (``at`` one position of each) that are `admitted`."""
        variants = [
            _Variant(draft, draft.with_word(position, word), position, word)
            for draft in drafts
            for position, words in draft.options.items()
            if position not in draft.edited and (at is None or at[draft.row] == position)
            for word in words
        ]
        return admitted(encoder, [v for v in variants if _within(budget, v)], self.constraints)


def _within(budget: EditBudget, variant: _Variant) -> bool:
    """Two words in place of one are two edits, which the number of rounds does not bound."""
    text, clean = variant.text, variant.draft.clean
    return len(text.split()) == len(clean.split()) or budget.count(text, clean) <= budget.n


def _accept_unverified(ranked: Iterable[list[tuple[_Variant, float]]]) -> list[_Draft]:
    firsts = [group[0] for group in ranked if group[0][1] > 0]
    for variant, score in firsts:
        variant.accept(variant.draft.loss + score)
    return [variant.draft for variant, _ in firsts]


def _ranked(variants: Sequence[_Variant], scores: Sequence[float]) -> list[list[tuple[_Variant, float]]]:
    """Per draft its variants with their scores, the highest first."""
    groups: dict[int, list[tuple[_Variant, float]]] = {}
    for variant, score in zip(variants, scores, strict=True):
        groups.setdefault(variant.draft.row, []).append((variant, score))
    return [sorted(group, key=lambda pair: -pair[1]) for group in groups.values()]


def _importance(encoder: TextEncoder, drafts: Sequence[_Draft]) -> dict[int, list[int]]:
    """Positions of each draft by falling KL(clean || caption with "[UNK]" there); positions without candidates are
    not asked for.
    """
    masked = [(draft, position) for draft in drafts for position in draft.options]
    orders: dict[int, list[int]] = {draft.row: [] for draft in drafts}
    if not masked:
        return orders
    without = encoder.encode([draft.with_word(position, _MASK) for draft, position in masked])
    scores = divergence(encoder.encode([draft.text for draft, _ in masked]), without).tolist()
    for (draft, position), _ in sorted(zip(masked, scores, strict=True), key=lambda pair: -pair[1]):
        orders[draft.row].append(position)
        draft.queries += 1
    return orders
