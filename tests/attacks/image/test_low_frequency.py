"""PGD in the low frequencies: what is kept, and that the change stays there."""

import pytest
import torch

from robustcli.attacks import LowFrequency, ThreatModel
from robustcli.attacks.image.low_frequency import low_pass
from robustcli.utils.errors import UserError


def test_the_low_part_is_a_projection_onto_smooth_pictures() -> None:
    noise = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    low = low_pass(noise, 0.5)
    assert torch.allclose(low_pass(low, 0.5), low, atol=1e-5) and torch.allclose(low_pass(noise, 1.0), noise, atol=1e-5)
    assert low.norm() < 0.7 * noise.norm()
    assert torch.allclose(low_pass(noise, 0.01), noise.mean((2, 3), keepdim=True).expand_as(noise), atol=1e-5)
    checks = (-1.0) ** torch.arange(8).view(1, 1, 8, 1) * (-1.0) ** torch.arange(8)
    assert low_pass(checks, 0.5).abs().max() < 0.3 and low_pass(torch.ones(1, 1, 8, 8), 0.2).allclose(torch.ones(1))


def test_the_change_has_low_frequencies_alone() -> None:
    images = torch.full((4, 1, 8, 8), 0.5)
    weights = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    labels = (images.flatten(1) @ weights).argmax(1)
    attack = LowFrequency(share=0.25, steps=5, early_stop=False)
    found = attack(lambda x: x.flatten(1) @ weights, images, labels, ThreatModel(norm="l2", eps=0.5)).images - images
    assert found.flatten(1).norm(dim=1).min() > 0.4
    assert torch.allclose(low_pass(found, 0.25), found, atol=1e-5)
    with pytest.raises(UserError, match="keeps no frequency"):
        LowFrequency(share=0)
