"""Counters of passes: even shares lose none."""

import pytest

from robustcli.attacks.core.counter import spread


@pytest.mark.parametrize(
    ("total", "samples", "shares"), [(7, 3, [3, 2, 2]), (2, 3, [1, 1, 0]), (6, 3, [2, 2, 2]), (5, 0, [])]
)
def test_shares_are_even_and_sum_to_the_total(total: int, samples: int, shares: list[int]) -> None:
    assert spread(total, samples).tolist() == shares
