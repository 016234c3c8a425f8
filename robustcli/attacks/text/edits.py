"""Edited captions and candidate edits of a greedy search over words or characters.

In each round a search makes candidates, each a caption with one more edit (`CandidateEdit`), drops those that are not
`admissible`, scores the rest in one batch and applies the best of each caption (`apply_best`).

Shapes: K candidate edits, M captions, T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import TextEncoder, TextObjective, content_lengths, of_words
from robustcli.attacks.core.retrieval import Constraint

_ROWS_AT_ONCE = 4096  # of an objective; a row may be compared with a whole gallery, so this bounds the memory


@dataclass
class EditedCaption:
    """A caption under attack; its edits so far make up ``text``.

    Attributes:
        row: in the objective.
        clean, text: before any edit, and now.
        loss: of ``text``; minus infinity before it is scored.
        queries, gradients: forward and backward passes spent on it.
    """

    row: int
    clean: str
    loss: float = -float("inf")
    queries: int = 0
    gradients: int = 0

    def __post_init__(self) -> None:
        self.text = self.clean


E = TypeVar("E", bound=EditedCaption)


@dataclass(frozen=True)
class CandidateEdit(Generic[E]):
    """A caption with one more edit, ``text``; the caption itself stays as it is until the edit is applied."""

    caption: E
    text: str

    def apply(self, loss: float) -> None:
        """Make the edit on the caption; ``loss`` is that of the edited text."""
        self.caption.text, self.caption.loss = self.text, loss


C = TypeVar("C", bound=CandidateEdit)  # type: ignore[type-arg]


def edit_output(captions: Sequence[EditedCaption]) -> tuple[list[str], Tensor, Tensor]:
    """Result of `TextAttack.edit`: M captions, and the forward and backward passes for each, (M,) long on the CPU."""
    queries, gradients = ([getattr(caption, name) for caption in captions] for name in ("queries", "gradients"))
    return [caption.text for caption in captions], torch.tensor(queries), torch.tensor(gradients)


def admissible(encoder: TextEncoder, candidates: Sequence[C], constraints: Sequence[Constraint]) -> list[C]:
    """Candidates that change the tokens, each token sequence once (the first stays), within all constraints.

    An edit beyond the tokenizer's limit or lost in its lower case is none, and one that brings in special tokens of the
    tokenizer (end of text, padding) would cut the caption off.
    """
    if not candidates:
        return []
    row_of: dict[str, int] = {}
    caption_rows = torch.tensor([row_of.setdefault(candidate.caption.text, len(row_of)) for candidate in candidates])
    before, after = (
        encoder.model.tokenize(texts).cpu() for texts in (list(row_of), [edit.text for edit in candidates])
    )
    special = encoder.model.tokenize([""]).cpu().flatten()
    visible = (after != before[caption_rows]).any(1) & (
        _inside(after, special) <= _inside(before, special)[caption_rows]
    )
    kept = torch.nonzero(visible).flatten().tolist()
    for constraint in constraints:
        chosen = [candidates[i] for i in kept]
        allowed = constraint.allowed([edit.caption.clean for edit in chosen], [edit.text for edit in chosen], encoder)
        kept = [i for i, fine in zip(kept, allowed, strict=True) if fine]
    rows = after.numpy()
    first = {(candidates[i].caption.row, rows[i].tobytes()): i for i in reversed(kept)}
    return [candidates[i] for i in sorted(first.values())]


def score_clean(encoder: TextEncoder, objective: TextObjective, captions: Sequence[EditedCaption]) -> None:
    """Set the loss of each caption as it is; one query each."""
    for caption, loss in zip(
        captions, losses(encoder, objective, captions, [caption.text for caption in captions]), strict=True
    ):
        caption.loss = loss


def losses(
    encoder: TextEncoder, objective: TextObjective, captions: Sequence[EditedCaption], texts: Sequence[str]
) -> list[float]:
    """Losses of K texts in place of the captions beside them; one query each, counted on those captions."""
    features, caption_rows = encoder.encode(texts), rows(captions, encoder)
    for caption in captions:
        caption.queries += 1
    with torch.no_grad():
        parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(caption_rows), _ROWS_AT_ONCE)]
        return [loss for part in parts for loss in objective(features[part], caption_rows[part]).tolist()]


def apply_best(encoder: TextEncoder, objective: TextObjective, candidates: Sequence[CandidateEdit[E]]) -> list[E]:
    """One greedy step: each caption takes its candidate of highest loss, the first of equals, if that raises the loss.

    Returns:
        the captions that were edited; the others are at a local optimum.
    """
    if not candidates:
        return []
    candidate_losses = losses(
        encoder, objective, [edit.caption for edit in candidates], [edit.text for edit in candidates]
    )
    best: dict[int, tuple[float, CandidateEdit[E]]] = {}
    for candidate, loss in zip(candidates, candidate_losses, strict=True):
        if loss > best.get(candidate.caption.row, (candidate.caption.loss,))[0]:
            best[candidate.caption.row] = (loss, candidate)
    for loss, candidate in best.values():
        candidate.apply(loss)
    return [candidate.caption for _, candidate in best.values()]


def rows(captions: Iterable[EditedCaption], encoder: TextEncoder) -> Tensor:
    """(K,) long, the captions' rows in the objective."""
    return torch.tensor([caption.row for caption in captions], dtype=torch.long, device=encoder.device)


def _inside(tokens: Tensor, special: Tensor) -> Tensor:
    """(K,T) -> (K,): number of special tokens (those of an empty caption) before the end, the start among them."""
    columns, words = torch.arange(tokens.shape[1]), of_words(tokens, special)
    end = torch.maximum(content_lengths(tokens) - 1, (words * columns).amax(1))
    return (~words & (columns < end[:, None])).sum(1)
