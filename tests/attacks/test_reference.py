"""Parity with the results of the published implementations on a small network, where these are at hand.

Shapes: N images, C channels, H height, W width.
"""

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import APGD, CW, FAB, FGSM, FMN, DeepFool

RESULTS = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "attacks_ref.pt"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason=f"{RESULTS} is not there")


class Toy(nn.Module):
    """The network of the reference, its weights drawn by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.fc = nn.Linear(512, 10)
        for name, weight in self.named_parameters():
            draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            weight.data = 0.1 * draw if weight.ndim == 1 else draw / weight[0].numel() ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c2(F.relu(self.c1((x - 0.5) / 0.5))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return 3 * logits


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(RESULTS, weights_only=True)
    return loaded


def norms(reference: dict[str, Any], name: str) -> Tensor:
    """(N,) float64, L2."""
    return torch.tensor([norm for _, norm, _ in reference[name]], dtype=torch.float64)


def test_deepfool_goes_as_far(reference: dict[str, Any]) -> None:
    found = DeepFool(classes=8, overshoot=0.02, steps=128, refine=0)(Toy(), reference["X"], reference["Y"])
    assert found.success.all()
    assert ((found.norm / norms(reference, "deepfool") - 1).abs() < 0.01).all()


@pytest.mark.parametrize("targets", [0, 9])
def test_fab_goes_as_far(reference: dict[str, Any], targets: int) -> None:
    steps = 128 if targets == 0 else 20
    attack = FAB(norm="l2", steps=steps, targets=targets, alpha_max=0.1, eta=1.05, beta=0.9)
    found = attack(Toy(), reference["X"], reference["Y"])
    assert ((found.norm / norms(reference, "fab") - 1).abs() < 0.01).all()


def test_carlini_and_wagner_s_goes_no_further(reference: dict[str, Any]) -> None:
    attack = CW(c=16, kappa=0.05, steps=1024, lr=5e-3, search_steps=1)  # eight restarts there
    found = attack(Toy(), reference["X"], reference["Y"])
    assert (found.norm <= norms(reference, "cw_ids")).all()


def test_fmn_goes_no_further_than_fab(reference: dict[str, Any]) -> None:
    found = FMN(steps=100)(Toy(), reference["X"], reference["Y"])
    assert (found.norm <= 1.001 * norms(reference, "fab")).all()


def test_fgsm_makes_the_same_images(reference: dict[str, Any]) -> None:
    """There every pixel moves equally far, whatever the norm."""
    found = FGSM(norm="linf", eps=1 / 3072**0.5)(Toy(), reference["X"], reference["Y"])
    theirs = torch.cat([image for _, _, image in reference["fgsm1"]])
    assert (found.images - theirs).abs().max() < 1e-6


@pytest.mark.parametrize(("loss", "name"), [("cross_entropy", "apgd_ce_1.0"), ("dlr", "apgd_dlr_1.0")])
def test_apgd_fools_as_many_within_as_much(reference: dict[str, Any], loss: str, name: str) -> None:
    found = APGD(norm="l2", eps=1.0, steps=64, loss=loss)(Toy(), reference["X"], reference["Y"])
    assert found.success.tolist() == [success for success, _, _ in reference[name]]
    assert (norms(reference, name) <= 1.0 + 1e-5).all()
