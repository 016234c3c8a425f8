"""Restarts of a search, each for the samples that are not fooled yet; the best result of each sample is kept.

Shapes: N samples, B samples not fooled yet, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import ImageOracle

# Rows (B,) and the number of the restart -> images (B,C,H,W) and their losses (B,).
Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def best_of(oracle: ImageOracle, images: Tensor, restarts: int, search: Search) -> Tensor:
    """(N,C,H,W): of each sample the first result that fools the model, else that of highest loss.

    Args:
        images: (N,C,H,W), the result of a sample whose losses are all NaN.
        restarts: 1 or more; a single one costs no comparison, its result is taken as it is.
    """
    rows = torch.arange(len(images), device=images.device)
    if restarts == 1:
        return search(rows, 0)[0]
    best, best_loss = images.clone(), lowest(images)
    for restart in range(restarts):
        x_adv, loss = search(rows, restart)
        fooled = oracle.is_fooled(rows)
        score = torch.where(fooled, torch.inf, loss.double())
        best[rows], best_loss[rows] = better(x_adv, score, best[rows], best_loss[rows])
        rows = rows[~fooled]
        if not len(rows):
            break
    return best


def better(x_adv: Tensor, loss: Tensor, best: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample the image of higher loss, and that loss in float64; a NaN never wins."""
    higher = loss.double() > best_loss
    return torch.where(higher.view(-1, 1, 1, 1), x_adv, best), torch.where(higher, loss.double(), best_loss)


def lowest(images: Tensor) -> Tensor:
    """(N,) float64 of minus infinity, the start of a running maximum of losses."""
    return images.new_full((len(images),), -torch.inf, dtype=torch.float64)
