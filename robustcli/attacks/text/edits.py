"""Captions on the way to a higher loss, and the variants that a text search chooses from.

Shapes: K variants, T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import TextEncoder, TextObjective, content_lengths
from robustcli.attacks.core.retrieval import Constraint

_ROWS_AT_ONCE = 4096  # of an objective, which may compare each with a whole gallery


@dataclass
class Draft:
    """A caption on the way: what it has become, its loss so far, and what was spent on it."""

    row: int
    clean: str
    loss: float = -float("inf")
    queries: int = 0
    gradients: int = 0

    def __post_init__(self) -> None:
        self.text = self.clean


D = TypeVar("D", bound=Draft)


@dataclass(frozen=True)
class Variant(Generic[D]):
    """A draft with one more edit."""

    draft: D
    text: str

    def accept(self, loss: float) -> None:
        """The draft becomes this."""
        self.draft.text, self.draft.loss = self.text, loss


V = TypeVar("V", bound=Variant)  # type: ignore[type-arg]


def outcome(drafts: Sequence[Draft]) -> tuple[list[str], Tensor, Tensor]:
    """What `TextAttack.edit` puts out: captions, forward and backward passes."""
    queries, gradients = ([getattr(draft, name) for draft in drafts] for name in ("queries", "gradients"))
    return [draft.text for draft in drafts], torch.tensor(queries), torch.tensor(gradients)


def admitted(encoder: TextEncoder, variants: Sequence[V], constraints: Sequence[Constraint]) -> list[V]:
    """Variants that the tokenizer tells from their draft and from each other, the first of those that it does not;
    without tokens of the tokenizer's own inside, and within all constraints.
    """
    if not variants:
        return []
    place: dict[str, int] = {}
    owner = torch.tensor([place.setdefault(variant.draft.text, len(place)) for variant in variants])
    before, after = (encoder.model.tokenize(texts).cpu() for texts in (list(place), [v.text for v in variants]))
    special = encoder.model.tokenize([""]).cpu().flatten()
    sound = (after != before[owner]).any(1) & (_inside(after, special) <= _inside(before, special)[owner])
    kept = torch.nonzero(sound).flatten().tolist()
    for constraint in constraints:
        chosen = [variants[i] for i in kept]
        allowed = constraint.allowed([v.draft.clean for v in chosen], [v.text for v in chosen], encoder)
        kept = [i for i, fine in zip(kept, allowed, strict=True) if fine]
    rows = after.numpy()
    first = {(variants[i].draft.row, rows[i].tobytes()): i for i in reversed(kept)}
    return [variants[i] for i in sorted(first.values())]


def judge_clean(encoder: TextEncoder, objective: TextObjective, drafts: Sequence[Draft]) -> None:
    """The loss of each draft as it is."""
    for draft, loss in zip(drafts, losses(encoder, objective, drafts, [d.text for d in drafts]), strict=True):
        draft.loss = loss


def losses(
    encoder: TextEncoder, objective: TextObjective, drafts: Sequence[Draft], texts: Sequence[str]
) -> list[float]:
    """Of each text, which stands for the draft beside it; counted there."""
    features, owner = encoder.encode(texts), rows(drafts, encoder)
    for draft in drafts:
        draft.queries += 1
    with torch.no_grad():
        parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(owner), _ROWS_AT_ONCE)]
        return [loss for part in parts for loss in objective(features[part], owner[part]).tolist()]


def accept_best(encoder: TextEncoder, objective: TextObjective, variants: Sequence[Variant[D]]) -> list[D]:
    """Each draft takes its best variant, the first of equals, if that raises its loss; those that did may go on."""
    if not variants:
        return []
    found = losses(encoder, objective, [v.draft for v in variants], [v.text for v in variants])
    best: dict[int, tuple[float, Variant[D]]] = {}
    for variant, loss in zip(variants, found, strict=True):
        if loss > best.get(variant.draft.row, (variant.draft.loss,))[0]:
            best[variant.draft.row] = (loss, variant)
    for loss, variant in best.values():
        variant.accept(loss)
    return [variant.draft for _, variant in best.values()]


def rows(drafts: Iterable[Draft], encoder: TextEncoder) -> Tensor:
    """(K,) long, the drafts' rows in the objective."""
    return torch.tensor([draft.row for draft in drafts], dtype=torch.long, device=encoder.device)


def _inside(tokens: Tensor, special: Tensor) -> Tensor:
    """(K,T) -> (K,): how many tokens between start and end are among ``special``, those of an empty caption."""
    columns = torch.arange(tokens.shape[1])
    inside = (columns >= 1) & (columns < content_lengths(tokens)[:, None] - 1)
    return (torch.isin(tokens, special) & inside).sum(1)
