"""Weights by their owners, as one of two processes sees them; `test_group` has processes that send."""

import pytest
import torch
from torch import nn

from robustcli.training.group import Group
from robustcli.training.shards import Shards, owners


@pytest.mark.parametrize(
    "sizes, count", [([1] * 8, 4), ([100, 1, 1, 1], 2), ([1, 1, 100, 1], 3), ([5], 4), ([], 3), ([0, 0], 2)]
)
def test_every_weight_has_one_owner(sizes: list[int], count: int) -> None:
    runs = owners(sizes, count)
    assert len(runs) == count and [number for run in runs for number in run] == list(range(len(sizes)))
    assert max(sum(sizes[run.start : run.stop]) for run in runs) <= sum(sizes) / count + max(sizes, default=0)


def test_equal_weights_are_shared_equally() -> None:
    assert owners([1] * 8, 4) == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]


def test_a_gradient_that_is_no_number_reaches_the_weights_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one process clips all of them: a norm that is left out would let these go on as if nothing were."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for weight, value in zip(weights, (3.0, torch.nan), strict=False):
        weight.grad = torch.full((2,), value)
    group = Group()
    group.size = 2
    monkeypatch.setattr(group, "gathered", lambda own: torch.cat([own, torch.tensor([[-1.0, torch.nan, -1.0]])]))
    Shards(weights, group, "zero2").clip(1.0)
    split = weights[0].grad.clone()
    weights[0].grad = torch.full((2,), 3.0)
    Shards(weights, Group(), "ddp").clip(1.0)
    assert torch.equal(split.isnan(), weights[0].grad.isnan()) and split.isnan().all()
