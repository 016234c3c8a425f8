"""The network by itself: shapes, gradients, groups and sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustcli.models.generators import NVAE
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import linear, noise, pictures

Configuration = Callable[..., dict[str, Any]]
CELEBA64 = {
    "num_scales": 3,
    "num_groups_per_scale": 8,
    "is_adaptive": False,
    "min_groups_per_scale": 1,
    "num_cells_per_group": 2,
    "num_latent_per_group": 16,
    "num_nf_cells": None,
    "initial_channels": 128,
    "num_pre-post_process_blocks": 1,
    "num_pre-post_process_cells": 2,
    "num_logistic_mixtures": 10,
}


@pytest.mark.parametrize("resolution", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("blocks", [0, 1])
def test_shapes(resolution: tuple[int, int, int], blocks: int, configuration: Configuration) -> None:
    model = NVAE(configuration(resolution, **{"num_pre-post_process_blocks": blocks, "num_nf_cells": 1}))
    _, height, width = resolution
    finest = (2, height >> blocks, width >> blocks)
    assert model.latent_shapes == ((2, finest[1] // 2, finest[2] // 2),) * 2 + (finest,) * 2
    images = pictures(2, resolution)
    features = model.encode(images)
    assert [len(feature) for feature in features] == [2, 2, 2, 2]
    found = model.decode(features, linear(model), noise(model, 2))
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    assert model.sample(noise(model, 2)).shape == images.shape
    with pytest.raises(ValueError, match="this generator takes"):
        model.encode(torch.zeros(2, 3, 4, 4))


def test_coarse_scales_have_fewer_groups_where_they_adapt(configuration: Configuration) -> None:
    sizes = {"num_scales": 3, "num_groups_per_scale": 8, "is_adaptive": True, "min_groups_per_scale": 3}
    found = NVAE(configuration((1, 16, 16), **sizes)).latent_shapes
    assert [shape[1] for shape in found] == [4] * 3 + [8] * 4 + [16] * 8


def test_the_published_faces_model_has_its_705_million_weights() -> None:
    with torch.device("meta"):
        model = NVAE({"autoencoder": CELEBA64, "resolution": [3, 64, 64]})
    assert sum(weight.numel() for weight in model.parameters()) == 705_744_448  # published 705.678 M + const_prior
    assert model.latent_shapes == ((16, 8, 8),) * 8 + ((16, 16, 16),) * 8 + ((16, 32, 32),) * 8


def test_the_gradient_is_that_of_finite_differences(configuration: Configuration) -> None:
    model = NVAE(configuration((3, 4, 4))).double().requires_grad_(False)
    eps, weights = noise(model, 2, dtype=torch.float64), pictures(2, (3, 4, 4), seed=1, dtype=torch.float64)

    def figure(images: torch.Tensor) -> torch.Tensor:
        return (model.decode(model.encode(images), 0.7 * linear(model).double(), eps) * weights).sum()

    images = pictures(2, (3, 4, 4), dtype=torch.float64).requires_grad_()
    gradient = torch.autograd.grad(figure(images), images)[0]
    for seed in range(3):
        step = 1e-5 * (pictures(2, (3, 4, 4), seed=seed, dtype=torch.float64) - 0.5)
        with torch.no_grad():
            difference = figure(images + step) - figure(images - step)
        torch.testing.assert_close(difference, 2 * (gradient * step).sum(), rtol=1e-6, atol=1e-12)


def test_checkpointing_changes_neither_output_nor_gradient(configuration: Configuration) -> None:
    model = NVAE(configuration()).requires_grad_(False)
    found = []
    for checkpoint in (False, True):
        images = pictures(2, (1, 8, 8)).requires_grad_()
        output = model.decode(model.encode(images), linear(model), noise(model, 2), checkpoint=checkpoint)
        found.append((output, torch.autograd.grad(output.square().sum(), images)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().sum() > 0


@pytest.mark.parametrize("flow", [None, 1])
def test_the_latents_are_those_that_are_kept(flow: int | None, configuration: Configuration) -> None:
    model, joined = NVAE(configuration(num_nf_cells=flow)), []
    features = model.encode(pictures(2, model.resolution))
    places = model.nf_cells or model.decoder_combiners  # which is where a latent goes first, with a flow and without
    for combiner in places.values():
        combiner.register_forward_pre_hook(lambda _, given: joined.append(given[-1]))
    with torch.no_grad():
        found = model.latents(features)
        of_latents, joined[:] = list(joined), []
        model.decode(features, torch.zeros(4), noise(model, 2))
    assert len(found) == len(joined) == 4
    assert all(torch.equal(*each) for each in zip(found, joined, strict=True))
    assert all(torch.equal(*each) for each in zip(found, of_latents, strict=True))


def test_alphas_of_one_forget_the_image_and_each_sample_may_have_its_own(configuration: Configuration) -> None:
    model, images = NVAE(configuration()), pictures(2, (1, 8, 8))
    eps = noise(model, 2)
    forgotten = model.decode(model.encode(images), torch.ones(4), eps)
    torch.testing.assert_close(forgotten, model.sample(eps))
    own = torch.stack([torch.zeros(4), torch.ones(4)])
    mixed = model.decode(model.encode(images), own, eps)
    torch.testing.assert_close(mixed[1], forgotten[1])
    assert not torch.allclose(mixed[0], forgotten[0])


def test_kept_products_of_frozen_weights_follow_them(configuration: Configuration) -> None:
    model = NVAE(configuration()).requires_grad_(False)
    images = pictures(1, (1, 8, 8))
    before = model.encode(images)[0]
    other = NVAE(configuration(), seed=1)
    model.load_state_dict(other.state_dict())
    assert not torch.equal(model.encode(images)[0], before)
    torch.testing.assert_close(model.encode(images)[0], other.encode(images)[0])
    assert model.double().encode(images.double())[0].dtype == torch.float64


def test_the_flow_reads_only_places_before_and_keeps_volumes(configuration: Configuration) -> None:
    model = NVAE(configuration((1, 4, 4), **{"num_nf_cells": 1, "num_scales": 1})).requires_grad_(False)
    flow = model.nf_cells["nf_0:0"] if model.nf_cells is not None else None
    assert flow is not None
    latent = pictures(1, (2, 4, 4))
    jacobian = torch.autograd.functional.jacobian(lambda z: flow(z).flatten(), latent).view(32, 32)
    assert abs(float(torch.linalg.slogdet(jacobian).logabsdet)) < 1e-4
    assert not torch.allclose(jacobian, torch.eye(32))


def test_new_weights_are_those_of_the_seed_and_the_global_generator_is_left(configuration: Configuration) -> None:
    state = torch.get_rng_state()
    first, again, other = (NVAE(configuration(), seed=seed).fingerprint() for seed in (3, 3, 4))
    assert first == again != other and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_scales": 5}, "not divisible by"),
        ({"num_groups_per_scale": 0}, "expected 1 to 100"),
        ({"nmu_scales": 2}, "has no key 'nmu_scales'"),
        ({"num_pre-post_process_blocks": 1, "num_pre-post_process_cells": 0}, "blocks of no cells"),
    ],
)
def test_impossible_sizes_are_told(changes: dict[str, Any], message: str, configuration: Configuration) -> None:
    with pytest.raises(UserError, match=message):
        NVAE(configuration(**changes))
