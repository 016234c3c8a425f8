"""Arithmetic of a row that does not depend on the rows computed beside it, bit for bit, on the CPU.

Matrix products of fewer than `FEWEST` rows take other kernels of the BLAS, which sum in another order: the same sample
alone and in a batch then differs in its last bits, which the sign of a gradient or an argmax turns into another
adversarial image. Where a batch is smaller it is filled up with copies of its last row, for the price of a larger pass.
On a GPU the kernel depends on the shape in more ways; there nothing is filled up, and rows may differ by rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

AT_ONCE = 1 << 24  # cosines of rows with a gallery that are held at once: 64 MB in float32
FEWEST = 16  # rows; measured with torch's CPU kernels: from here on a row is the same in any product


def filled(rows: Tensor) -> Tensor:
    """(B,...) -> (max(B, 16),...) on the CPU, the last row repeated; as it is on a GPU, or where there is no row."""
    missing = FEWEST - len(rows)
    if rows.is_cuda or missing <= 0 or not len(rows):
        return rows
    return torch.cat([rows, rows[-1:].detach().expand(missing, *rows.shape[1:])])


def in_tiles(length: Tensor) -> Tensor:
    """The next multiple of 16: of an attention over so many tokens no row stands in the rest of a tile.

    Two such widths still differ in their last bits on some CPUs: a text is always computed in that of its own length.
    """
    return -(-length // FEWEST) * FEWEST


def cosines(features: Tensor, gallery: Tensor) -> Tensor:
    """(...,D) and (G,D) of unit norm -> (...,G)."""
    rows = features.reshape(-1, features.shape[-1])
    return (filled(rows) @ gallery.T)[: len(rows)].view(*features.shape[:-1], len(gallery))


def in_parts(function: Callable[..., Tensor], width: int, *rows: Tensor) -> Tensor:
    """``function(*rows)`` of tensors (B,...), in parts of so many rows that ``width`` numbers of each are `AT_ONCE`,
    but no fewer than 16.

    Rows do not depend on each other, so the parts give what the whole gives. With several parts a backward pass
    computes each again, so that the graph holds none of them: the memory is that of one part.
    """
    at_once = max(FEWEST, AT_ONCE // max(1, width))
    if len(rows[0]) <= at_once:
        return function(*rows)
    parts = zip(*(torch.split(each, at_once) for each in rows), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def paired_cosines(features: Tensor, candidates: Tensor) -> Tensor:
    """(B,D) and (B,...,D) of unit norm -> (B,...), independent of the number of candidates too.

    In float64, since the gradient is a sum over the candidates, whose order depends on their number.
    """
    shape = (len(features), *(1,) * (candidates.ndim - 2), features.shape[-1])
    return (features.double().view(shape) * candidates).sum(-1).to(features.dtype)
