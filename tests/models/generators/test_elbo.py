"""The objective of a generator, and the moments that follow the training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.models.generators import ELBO, NVAE, bits, bound, moments_at
from robustcli.models.generators.elbo import largest_gains, spectral_norms
from robustcli.models.generators.layers import NormedConv2d
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import noise, pictures

Configuration = Callable[..., dict[str, Any]]


def test_the_loss_is_the_bound_in_bits(configuration: Configuration) -> None:
    model, images = NVAE(configuration()), pictures(3, (1, 8, 8))
    nll, kl = bound(model, images, seed=5)
    assert nll.shape == (3,) and kl.shape == (3, 4) and bool((kl >= 0).all())
    whole = ELBO().loss(model, images, number=0, seed=5)
    torch.testing.assert_close(whole, (nll + kl.sum(1)).mean() / bits(model))
    half = ELBO(beta=0.5).loss(model, images, number=0, seed=5)
    torch.testing.assert_close(half, (nll + 0.5 * kl.sum(1)).mean() / bits(model))
    assert not torch.equal(bound(model, images, seed=6)[0], nll)


def test_the_kl_is_that_of_the_drawn_densities(configuration: Configuration) -> None:
    closed, sampled = (NVAE(configuration(**{"num_nf_cells": flow})) for flow in (None, 1))
    assert sampled.nf_cells is not None
    sampled.load_state_dict(closed.state_dict(), strict=False)
    for weight in sampled.nf_cells.parameters():
        nn.init.zeros_(weight)  # a flow that changes nothing: both are of the same densities
    images = pictures(1, (1, 8, 8)).expand(1000, -1, -1, -1)
    with torch.no_grad():
        eps = noise(closed, 1000)
        expected, found = (model.infer(images, eps).kl.mean(0) for model in (closed, sampled))
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_the_weight_rises_and_the_balance_ends_with_it(configuration: Configuration) -> None:
    model, images = NVAE(configuration()), pictures(3, (1, 8, 8))
    nll, kl = bound(model, images, seed=5)
    start, end = (ELBO(warmup=10).loss(model, images, number=number, seed=5) for number in (0, 10))
    torch.testing.assert_close(start, nll.mean() / bits(model))
    torch.testing.assert_close(end, (nll + kl.sum(1)).mean() / bits(model))
    middle = ELBO(warmup=10).loss(model, images, number=5, seed=5)
    plain = ELBO(warmup=10, balance=False).loss(model, images, number=5, seed=5)
    assert middle > plain  # latents that are large and say much weigh more
    torch.testing.assert_close(plain, (nll + 0.5 * kl.sum(1)).mean() / bits(model))


def test_every_weight_learns(configuration: Configuration) -> None:
    model = NVAE(configuration(**{"num_pre-post_process_blocks": 1, "num_nf_cells": 1})).train()
    ELBO(spectral=0.1, batch_norm=0.1).loss(model, pictures(4, (1, 8, 8)), number=0, seed=0).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert silent == []


def test_spectral_norms_are_the_largest_singular_values(configuration: Configuration) -> None:
    model = NVAE(configuration())
    kernels = [each for each in model.modules() if isinstance(each, NormedConv2d | nn.Conv2d)]
    exact = sum(float(torch.linalg.matrix_norm(each.weight.detach().flatten(1), 2)) for each in kernels)
    assert float(spectral_norms(model.requires_grad_(False), iterations=60, seed=0)) == pytest.approx(exact, rel=1e-2)
    assert float(spectral_norms(model.requires_grad_(False), iterations=1, seed=0)) <= exact
    assert float(largest_gains(model)) == sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())


def test_moments_are_those_of_draws_and_leave_the_model(configuration: Configuration) -> None:
    model = NVAE(configuration())
    before = model.fingerprint()
    found = moments_at(model, 0.5, batches=10, batch_size=60)
    assert model.fingerprint() == before and model.temperature == 0.6 and not model.training
    assert all("decoder_tower" in name for name in found) and "encoder_tower" not in " ".join(found)
    seen: list[torch.Tensor] = []
    model.load_state_dict({**model.state_dict(), **found})
    name = "decoder_tower.scale_0.group_1.cell_0.residual.0"
    model.get_submodule(name).register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    model.temperature = 0.5
    with torch.no_grad():
        model.sample(noise(model, 600))
    mean = seen[0].mean((0, 2, 3))
    torch.testing.assert_close(found[f"{name}.running_mean"], mean, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("key", ["beta", "warmup", "spectral", "batch_norm"])
def test_impossible_settings_are_told(key: str) -> None:
    with pytest.raises(UserError, match=rf"objective\.{key} is -1"):
        ELBO(**{key: -1})
