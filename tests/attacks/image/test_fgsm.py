"""The one step, in the gradient's direction and in that of its signs."""

import pytest
import torch

from robustcli.attacks import FGSM

from ..conftest import LinearClassifier

MODEL = LinearClassifier(torch.tensor([3.0, -1.0, 0.5, 2.0]), 0.0)
IMAGES, LABELS = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])


def test_with_signs_every_pixel_moves_by_the_same_amount() -> None:
    signed = FGSM(norm="l2", eps=0.4, sign=True)(MODEL, IMAGES, LABELS).images - IMAGES
    assert torch.allclose(signed.flatten(), torch.tensor([-0.2, 0.2, -0.2, -0.2]), atol=1e-6)
    plain = FGSM(norm="l2", eps=0.4)(MODEL, IMAGES, LABELS).images - IMAGES
    assert torch.allclose(plain.flatten(), -0.4 * MODEL.weight / MODEL.weight.norm(), atol=1e-6)


def test_linf_has_signs_anyway() -> None:
    both = [FGSM(eps=0.1, sign=sign)(MODEL, IMAGES, LABELS).images for sign in (False, True)]
    assert torch.equal(*both)
    assert torch.allclose((both[0] - IMAGES).flatten(), torch.tensor([-0.1, 0.1, -0.1, -0.1]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_the_boundary_is_where_it_is(norm: str) -> None:
    distance = float(2.25 / (6.5 if norm == "linf" else MODEL.weight.detach().norm()))
    fooled = [bool(FGSM(norm=norm, eps=factor * distance)(MODEL, IMAGES, LABELS).success) for factor in (0.99, 1.01)]
    assert fooled == [False, True]
