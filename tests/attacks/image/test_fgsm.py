"""The one step, in the gradient's direction and in that of its signs."""

import torch

from robustcli.attacks import FGSM

from ..conftest import LinearClassifier


def test_with_signs_every_pixel_moves_by_the_same_amount() -> None:
    model = LinearClassifier(torch.tensor([3.0, -1.0, 0.5, 2.0]), 0.0)
    images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])
    signed = FGSM(norm="l2", eps=0.4, sign=True)(model, images, labels).images - images
    assert torch.allclose(signed.flatten(), torch.tensor([-0.2, 0.2, -0.2, -0.2]), atol=1e-6)
    plain = FGSM(norm="l2", eps=0.4)(model, images, labels).images - images
    assert torch.allclose(plain.flatten(), -0.4 * model.weight / model.weight.norm(), atol=1e-6)


def test_linf_has_signs_anyway() -> None:
    model = LinearClassifier(torch.tensor([3.0, -1.0, 0.5, 2.0]), 0.0)
    images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])
    both = [FGSM(eps=0.1, sign=sign)(model, images, labels).images for sign in (False, True)]
    assert torch.equal(*both) and torch.allclose((both[0] - images).abs(), torch.tensor(0.1))
