"""Freezing of a model during an attack."""

import pytest
import torch

from robustcli.attacks import PGD
from robustcli.models import small_cnn


def test_inference_mode_is_refused_for_its_gradients_are_zeros() -> None:
    """There `torch.enable_grad` enables nothing, and an attack would leave every image as it is."""
    model = small_cnn(("a", "b"), channels=1, widths=(4,), seed=0)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside of torch\.inference_mode"):
        PGD(eps=0.1)(model, images, labels)
    with torch.no_grad():
        inside = PGD(eps=0.1)(model, images, labels)
    assert torch.equal(inside.images, PGD(eps=0.1)(model, images, labels).images)
