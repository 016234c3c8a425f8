"""Batch norms inside convolutions give what they give beside them, and follow every change of a weight."""

import copy

import pytest
import torch

from robustcli.models.generators.cells import DecoderCell


def cell_of(*, doubled: bool) -> DecoderCell:
    """With norms that have seen something, so that none of them is the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = DecoderCell(4, 2 if doubled else None, expansion=3)
        for _ in range(3):
            cell(1 + 2 * torch.randn(8, 4, 4, 4))
        for name, weight in cell.named_parameters():
            if name.endswith(("0.weight", "0.bias")) or weight.ndim == 1:
                weight.data.add_(0.3 * torch.randn_like(weight))
    return cell.eval()


@pytest.mark.parametrize("doubled", [False, True])
def test_folded_and_plain_agree_with_their_gradients(doubled: bool) -> None:
    cell, found = cell_of(doubled=doubled), []
    for frozen in (False, True):
        cell.requires_grad_(not frozen)
        assert cell._folded.possible == frozen
        x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        y = cell(x)
        found.append((y.detach(), torch.autograd.grad(y.square().sum(), x)[0]))
    assert not torch.allclose(found[0][0], cell.skip_connection(x).detach(), atol=1e-3), "the branch adds nothing"
    for plain, folded in zip(*found, strict=True):
        assert torch.allclose(plain, folded, atol=1e-5)


def test_a_change_of_any_weight_or_moment_is_followed() -> None:
    cell, x = (
        cell_of(doubled=False).requires_grad_(False),
        torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2)),
    )
    before = cell(x)
    for name, tensor in cell.residual.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("9"):
            tensor.add_(0.5)
            after = cell(x)
            assert not torch.equal(before, after), name
            before = after


def test_training_uses_the_moments_of_the_batch() -> None:
    cell = cell_of(doubled=False).requires_grad_(False)
    moments = cell.residual[0].running_mean
    assert isinstance(moments, torch.Tensor)
    seen = moments.clone()
    cell.train()(3 + torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(seen, moments)


def test_a_copy_folds_its_own_weights() -> None:
    cell, x = (
        cell_of(doubled=False).requires_grad_(False),
        torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2)),
    )
    before, twin = cell(x), copy.deepcopy(cell)
    twin.residual[1].weight.data.zero_()
    assert torch.equal(cell(x), before) and not torch.equal(twin(x), before)
