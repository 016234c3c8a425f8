"""Arithmetic of a row that reads no row beside it.

Shapes: B rows, D embedding, G gallery.
"""

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from robustcli.utils import rowwise
from robustcli.utils.rowwise import cosines, filled, in_parts, in_tiles, paired_cosines
from robustcli.utils.seeding import generator


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=generator(seed)), dim=-1)


@pytest.mark.parametrize(("rows", "expected"), [(0, 0), (1, 16), (15, 16), (16, 16), (17, 17)])
def test_a_small_batch_is_filled_with_its_last_row(rows: int, expected: int) -> None:
    batch = torch.rand(rows, 3, 2)
    found = filled(batch)
    assert found.shape == (expected, 3, 2) and torch.equal(found[:rows], batch)
    assert all(torch.equal(row, batch[-1]) for row in found[rows:])


def test_the_copies_have_no_gradient() -> None:
    batch = torch.rand(3, 2, requires_grad=True)
    filled(batch).sum().backward()
    assert batch.grad is not None and torch.equal(batch.grad, torch.ones(3, 2))


@pytest.mark.parametrize(("length", "expected"), [(1, 16), (16, 16), (17, 32), (77, 80)])
def test_tiles_are_whole(length: int, expected: int) -> None:
    assert in_tiles(length) == expected


@pytest.mark.parametrize("dimensions", [24, 64, 512])
def test_a_cosine_alone_is_that_in_a_batch_to_the_bit(dimensions: int) -> None:
    features, gallery = unit(32, 4, dimensions, seed=1), unit(50, dimensions, seed=2)
    whole = cosines(features, gallery)
    assert whole.shape == (32, 4, 50)
    assert torch.allclose(whole, torch.einsum("bvd,gd->bvg", features, gallery), atol=1e-5)
    for i in range(32):
        assert torch.equal(cosines(features[i, 0], gallery), whole[i, 0])


def test_the_gradient_of_paired_cosines_is_that_of_double_precision() -> None:
    """A sum over candidates in float32 would depend on how many there are and in which order."""
    features, candidates = unit(4, 64, seed=3), unit(4, 300, 64, seed=4)
    weight = torch.randn(4, 300, generator=generator(5))
    leaf = features.clone().requires_grad_()
    found = paired_cosines(leaf, candidates)
    (gradient,) = torch.autograd.grad((weight * found).sum(), leaf)
    exact = torch.einsum("bd,bgd->bg", features.double(), candidates.double())
    slope = torch.einsum("bg,bgd->bd", weight.double(), candidates.double())
    assert found.dtype == torch.float32 and torch.equal(found, exact.float())
    assert torch.equal(gradient, slope.float())


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_parts_are_the_whole_and_their_gradient_is_its_gradient(rows: int) -> None:
    features, gallery, seen = unit(rows, 8, seed=1).requires_grad_(), unit(50, 8, seed=2), []

    def function(part: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return cosines(part, gallery).logsumexp(1) * numbers

    found = []
    for at_once in (1 << 24, 1):
        with patch.object(rowwise, "AT_ONCE", at_once):
            value = in_parts(function, len(gallery), features, torch.arange(rows))
        found.append((value, *torch.autograd.grad(value.sum(), features)))
    assert all(torch.equal(whole, parts) for whole, parts in zip(*found, strict=True))
    assert max(seen[1:]) <= 16, "never fewer than a product of its own kind, never more"
