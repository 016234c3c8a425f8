"""The tree of a sum: what it adds first, and that parts of it are parts of any split."""

from fractions import Fraction

import pytest
import torch

from robustcli.training.pairwise import PairwiseSum, blocks, pairwise_sum


def tree(count: int, runs: list[range]) -> str:
    """The sum of ``count`` letters as written by processes that have a run each."""

    class Word(str):
        def __add__(self, other: str) -> "Word":
            return Word(f"({self!s}+{other})")

    whole = PairwiseSum()
    for run in runs:
        part = PairwiseSum()
        for number in run:
            part.add(Word(chr(ord("a") + number)), number)
        assert [node[:2] for node in part.nodes] == list(blocks(run))
        for first, size, value in part.nodes:
            whole.add(value, first, size)
    return str(whole.total())


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "a"), (2, "(a+b)"), (3, "((a+b)+c)"), (4, "((a+b)+(c+d))"), (7, "(((a+b)+(c+d))+((e+f)+g))")],
)
def test_neighbours_first(count: int, expected: str) -> None:
    assert tree(count, [range(count)]) == expected


@pytest.mark.parametrize("count", range(1, 21))
def test_any_split_into_runs_writes_the_same_tree(count: int) -> None:
    alone = tree(count, [range(count)])
    for size in range(1, count + 1):
        if count % size == 0:
            share = count // size
            assert tree(count, [range(rank * share, (rank + 1) * share) for rank in range(size)]) == alone, size


def test_it_is_the_sum() -> None:
    values = torch.rand(37, generator=torch.Generator().manual_seed(0), dtype=torch.double).tolist()
    assert pairwise_sum(values) == pytest.approx(float(sum(map(Fraction, values))), rel=1e-15)


def test_few_terms_are_held_at_once() -> None:
    total = PairwiseSum()
    for number in range(1000):
        total.add(1.0, number)
        assert len(total.nodes) <= 11
