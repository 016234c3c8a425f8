"""Restarts: a success counts for more than any loss.

Shapes: B samples not fooled yet, C channels, H height, W width.
"""

import torch
from torch import Tensor

from robustcli.attacks import ImageOracle
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.restarts import best_of


def test_a_success_is_kept_though_a_failure_had_a_higher_loss() -> None:
    """Sample 0 is fooled at once, 1 in the second restart at a low loss, 2 never: its highest loss is the first."""
    oracle, images, asked = ImageOracle(lambda x, _: x.sum((1, 2, 3)), QueryCounter.of(3)), torch.zeros(3, 1, 1, 1), []

    def search(rows: Tensor, restart: int) -> tuple[Tensor, Tensor]:
        asked.append(rows.tolist())
        oracle.fooled[rows] = (rows <= restart) & (rows < 2)
        return torch.full((len(rows), 1, 1, 1), 0.1 * (restart + 1)), torch.full((len(rows),), 9.0 - restart)

    best = best_of(oracle, images, 3, search)
    assert torch.allclose(best.flatten(), torch.tensor([0.1, 0.2, 0.1]))
    assert asked == [[0, 1, 2], [1, 2], [2]]
