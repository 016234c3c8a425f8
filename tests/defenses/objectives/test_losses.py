"""The contrastive loss with more than one positive."""

import math

import pytest
import torch
from torch.nn import functional as F

from robustcli.defenses.objectives.losses import info_nce

SCALE = torch.tensor(10.0)


def features(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


@pytest.mark.parametrize("positives", ["diagonal", "mask", "soft"])
def test_without_other_positives_all_forms_are_the_usual_loss(positives: str) -> None:
    x, t, eye = features(5, 0), features(5, 1), torch.eye(5, dtype=torch.bool)
    logits = 10 * x @ t.T
    usual = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert info_nce(x, t, SCALE, eye, positives=positives).mean().item() == pytest.approx(usual.item(), abs=1e-12)


def test_two_rows_of_one_image_cost_ln2_on_the_diagonal_and_nothing_when_masked() -> None:
    """The floor of the plain loss where two pairs share an image: each sees the other's true caption as a negative."""
    x = torch.eye(4, dtype=torch.float64)[[0, 0]]
    matches = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(x, x, torch.tensor(100.0), matches, positives="diagonal").mean().item() == pytest.approx(
        math.log(2)
    )
    assert info_nce(x, x, torch.tensor(100.0), matches, positives="mask").mean().item() == 0


def test_soft_targets_are_shared_evenly_by_the_true_pairs() -> None:
    x, t = features(3, 0), features(3, 1)
    matches = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    rows = -(F.log_softmax(10 * x @ t.T, 1) * matches / matches.sum(1, keepdim=True)).sum(1).mean()
    columns = -(F.log_softmax(10 * t @ x.T, 1) * matches.T / matches.T.sum(1, keepdim=True)).sum(1).mean()
    assert info_nce(x, t, SCALE, matches, positives="soft").mean().item() == pytest.approx(
        ((rows + columns) / 2).item()
    )


def test_one_direction_ignores_the_other() -> None:
    x, t, eye = features(5, 0), features(5, 1), torch.eye(5, dtype=torch.bool)
    expected = F.cross_entropy(10 * x @ t.T, torch.arange(5))
    assert info_nce(x, t, SCALE, eye, directions="image_to_text").mean().item() == pytest.approx(expected.item())
