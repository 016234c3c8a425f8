"""Against the outputs of the published implementation, with the weights and draws that it had."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.models.generators import NVAE
from tests.models.generators.conftest import FIXTURES, linear, noise

TOLERANCE = 1e-5
NAMES = ("nvae_small", "nvae_small_nf")
Published = Callable[[str], Any]


def drawn(model: NVAE, count: int) -> list[Tensor]:
    """In the order of the published code, from the global generator."""
    return [torch.randn(count, *shape) for shape in model.latent_shapes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["a0", "a1", "lin"])
def test_purified_images(name: str, schedule: str, published: Published) -> None:
    expected = published(f"{name}_ref.pt")
    model = NVAE.load(FIXTURES / f"{name}.pt")
    ones = torch.ones(len(model.latent_shapes))
    alphas = {"a0": 0 * ones, "a1": ones, "lin": linear(model)}[schedule]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        eps = drawn(model, 2)
    found = model.decode(model.encode(expected["x"]), 0.7 * alphas, eps)
    torch.testing.assert_close(found, expected[schedule], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_reconstruction_whatever_the_noise(name: str, published: Published) -> None:
    expected = published(f"{name}_ref.pt")
    model = NVAE.load(FIXTURES / f"{name}.pt")
    alphas = torch.zeros(len(model.latent_shapes))
    found = model.decode(model.encode(expected["x"]), alphas, noise(model, 2))
    torch.testing.assert_close(found, expected["reconstruct_det"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_samples_then_the_likelihood(name: str, published: Published) -> None:
    """The published sample is a draw from the mixture; the loss was computed after it, with the draws that followed."""
    expected = published(f"{name}_ref.pt")
    model = NVAE.load(FIXTURES / f"{name}.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        of_the_prior = drawn(model, 2)
        pick = torch.empty(2, 3, 64, 64).uniform_(1e-5, 1 - 1e-5)  # 3 mixtures
        place = torch.empty(2, 3, 64, 64).uniform_(1e-5, 1 - 1e-5)
        of_the_posterior = drawn(model, 2)
    mixture = model.mixture(last_layer(model, lambda: model.sample(of_the_prior)))
    sample = 0.5 * mixture.sample(pick, place) + 0.5
    torch.testing.assert_close(sample, expected["sample_t0.6_seed5"], rtol=0, atol=TOLERANCE)
    if "recon_loss" in expected:
        found = model.infer(expected["x"], of_the_posterior)
        loss = -model.mixture(found.parameters).log_prob(2 * expected["x"] - 1).sum((1, 2))
        torch.testing.assert_close(loss, expected["recon_loss"], rtol=TOLERANCE, atol=0)


def last_layer(model: NVAE, work: Callable[[], Tensor]) -> Tensor:
    """Output of the last layer while ``work`` is done."""
    seen: list[Tensor] = []
    hook = model.to_logits.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    work()
    hook.remove()
    return seen[-1]
