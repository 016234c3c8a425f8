"""Restarts of a search: each for the samples that still stand, the best result of each sample is kept.

Shapes: N samples, B samples that still stand, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import ImageOracle

# Rows (B,) and the number of the restart -> images (B,C,H,W) and their losses (B,).
Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def best_of(oracle: ImageOracle, images: Tensor, restarts: int, search: Search) -> Tensor:
    """(N,C,H,W): of each sample the first result that fools, else that of highest loss.

    Args:
        images: (N,C,H,W), what a sample keeps whose losses are all NaN.
    """
    rows = torch.arange(len(images), device=images.device)
    if restarts == 1:
        return search(rows, 0)[0]
    best, best_loss = images.clone(), lowest(images)
    for restart in range(restarts):
        found, loss = search(rows, restart)
        fooled = oracle.done(rows)
        heights = torch.where(fooled, torch.inf, loss.double())
        best[rows], best_loss[rows] = better(found, heights, best[rows], best_loss[rows])
        rows = rows[~fooled]
        if not len(rows):
            break
    return best


def better(found: Tensor, loss: Tensor, best: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample the one of higher loss; a NaN never wins."""
    higher = loss.double() > best_loss
    return torch.where(higher.view(-1, 1, 1, 1), found, best), torch.where(higher, loss.double(), best_loss)


def lowest(images: Tensor) -> Tensor:
    """(N,) float64, a loss that any other beats."""
    return images.new_full((len(images),), -torch.inf, dtype=torch.float64)
