"""How far a gradient by the token embeddings promises to raise a loss as words change (HotFlip, Ebrahimi et al. 2018).

Shapes: M captions, K variants, T tokens, V vectors of the token table.
"""

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import TextEncoder, content_lengths


def first_order(encoder: TextEncoder, before: Tensor, after: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
    """(K,) rise of the loss to first order.

    Where a variant differs from its caption, from the first to the last token, the mean of its vectors takes the place
    of the mean of the caption's; exact to first order where one token replaces one.

    Args:
        before, after: (K,T) tokens of each variant's caption and of the variant itself; they differ.
        gradient: (M,T',V) of the captions' losses, T' at least their longest.
        rows: (K,) long, the row of ``gradient`` of each variant.
    """
    old, new = _changed_spans(before, after)
    moved = encoder.mean_vectors(after, new) - encoder.mean_vectors(before, old)
    owner, position = torch.nonzero(old[:, : gradient.shape[1]], as_tuple=True)
    slopes = torch.zeros_like(moved)
    slopes.index_add_(0, owner.to(moved.device), gradient[rows[owner].to(moved.device), position.to(moved.device)])
    return (moved * slopes).sum(1)


def _changed_spans(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(K,T) bool twice: the tokens of each row between the parts that both have in common at the start and at the
    end.
    """
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
