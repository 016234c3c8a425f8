"""Lists of true items, against the matrix that they stand for."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcli.utils import relevance as module
from robustcli.utils.relevance import Relevance


def matrix(rows: int, columns: int, density: float, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    chosen=st.lists(st.integers(0, 8), max_size=12),
    seed=st.integers(0, 10**6),
)
def test_lists_answer_as_the_matrix_does(shape: tuple[int, int], density: float, chosen: list[int], seed: int):
    dense = matrix(*shape, density, seed)
    lists = Relevance.of_matrix(dense)
    rows, columns = (torch.tensor([each % size for each in chosen], dtype=torch.long) for size in shape)
    assert lists.shape == shape and torch.equal(lists.matrix(), dense)
    assert torch.equal(lists.matrix(rows), dense[rows]) and torch.equal(lists[rows].matrix(), dense[rows])
    assert torch.equal(lists.T.matrix(), dense.T) and torch.equal(lists.among(columns).matrix(), dense[:, columns])
    assert torch.equal(lists.counts, dense.sum(1)) and lists.most == int(dense.sum(1).max())
    assert lists.share == pytest.approx(float(dense.double().mean()))
    pairs = torch.nonzero(dense)[torch.randperm(int(dense.sum()))].repeat(2, 1)
    for again in (Relevance.of_pairs(pairs[:, 0], pairs[:, 1], shape), lists.T.T, lists.among(torch.arange(shape[1]))):
        assert torch.equal(again.offsets, lists.offsets) and torch.equal(again.items, lists.items)
    with patch.object(module, "BLOCK", 10):
        blocks = Relevance.of_blocks(lambda part: dense[part], torch.arange(shape[0]), shape[1])
    assert torch.equal(blocks.matrix(), dense)


def test_what_is_no_matrix_of_truth_is_refused():
    for wrong in (torch.ones(2, 2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="expected"):
            Relevance.of_matrix(wrong)
