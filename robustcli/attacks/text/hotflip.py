"""First-order rise of a loss under edits of a caption, from the gradient by the token embeddings (HotFlip, Ebrahimi et
al. 2018).

Shapes: M captions, K candidate edits, T tokens, V width of the token table.
"""

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import TextEncoder, content_lengths


def first_order(encoder: TextEncoder, before: Tensor, after: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
    """(K,) rise of the loss to first order: gradient at the changed tokens times the change of their mean embedding.

    Tokens of an edit are those from the first to the last that differs from its caption. Where one token replaces one
    this is HotFlip's score; spans of unequal length are compared by their means.

    Args:
        before, after: (K,T) tokens of each candidate's caption and of the candidate itself; they differ.
        gradient: (M,T',V) of the captions' losses, T' at least their longest.
        rows: (K,) long, the row of ``gradient`` of each candidate.
    """
    old, new = _changed_spans(before, after)
    delta = encoder.mean_vectors(after, new) - encoder.mean_vectors(before, old)
    variant, position = torch.nonzero(old[:, : gradient.shape[1]], as_tuple=True)
    summed = torch.zeros_like(delta)
    summed.index_add_(0, variant.to(delta.device), gradient[rows[variant].to(delta.device), position.to(delta.device)])
    return (delta * summed).sum(1)


def _changed_spans(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(K,T) bool twice: the tokens of each row between the common prefix and the common suffix of both."""
    lengths = torch.stack([content_lengths(before), content_lengths(after)])
    start = (before != after).long().argmax(1)
    columns = torch.arange(before.shape[1])
    shortest = (lengths.amin(0) - start).clamp(min=0)
    from_end = (lengths[:, :, None] - 1 - columns).clamp(min=0)
    same = before.gather(1, from_end[0]) == after.gather(1, from_end[1])
    common = torch.minimum(same.long().cumprod(1).sum(1), shortest)
    ends = lengths - common
    inside = (columns >= start[:, None])[None] & (columns < ends[:, :, None])
    return inside[0], inside[1]
