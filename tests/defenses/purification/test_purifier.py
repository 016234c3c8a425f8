"""The purifier: what each alpha means, whose draws are whose, and that gradients pass."""

import pytest
import torch

from robustcli.defenses import NormNoise, Purifier
from robustcli.models.generators import NVAE
from robustcli.utils.errors import UserError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_without_alphas_it_is_the_deterministic_reconstruction(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas="none")
    noise = purifier.sample_noise(3, images)
    expected = generator.decode(generator.encode(images), torch.zeros(4), noise)
    assert not purifier.randomised
    assert torch.equal(purifier(images), purifier(images))
    assert torch.allclose(purifier(images), expected, atol=1e-6)


def test_with_all_alphas_one_the_image_is_forgotten(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas=[1, 1, 1, 1])
    noise = [latent[:1].expand(3, -1, -1, -1) for latent in purifier.sample_noise(3, images)]
    found = purifier(images, noise)
    assert torch.allclose(found, found[:1].expand_as(found), atol=1e-5)
    assert torch.allclose(found, generator.sample(noise), atol=1e-5)


def test_each_alpha_is_that_of_its_own_latent_coarse_to_fine(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas=[0, 0, 0, 1])
    noise, other = purifier.sample_noise(3, images), purifier.sample_noise(3, images)
    assert torch.allclose(purifier(images, noise), purifier(images, [*other[:3], noise[3]]), atol=1e-6)
    assert not torch.allclose(purifier(images, noise), purifier(images, [*noise[:3], other[3]]), atol=1e-4)


def test_attenuation_multiplies(generator: NVAE) -> None:
    found = Purifier(generator, alphas="linear", attenuation=0.5).alphas
    assert torch.allclose(found, torch.tensor([0.125, 0.25, 0.375, 0.5]))


def test_global_draws_come_in_the_order_of_the_latents(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas="linear")
    torch.manual_seed(11)
    noise = [torch.randn(3, *shape) for shape in generator.latent_shapes]
    torch.manual_seed(11)
    assert torch.equal(purifier(images), purifier(images, noise))


def test_named_noise_depends_on_the_sample_and_not_on_its_batch(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas="linear")
    together, alone = purifier.named_noise([7, 3], images, seed=0), purifier.named_noise([3], images, seed=0)
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(alone[0], purifier.named_noise([3], images, seed=0, draw=1)[0])
    assert not torch.equal(alone[0], purifier.named_noise([3], images, seed=1)[0])


def test_checkpointing_changes_no_gradient(generator: NVAE, images: torch.Tensor) -> None:
    noise = Purifier(generator, alphas="linear").sample_noise(3, images)
    found = []
    for checkpoint in (False, True):
        pixels = images.clone().requires_grad_(True)
        Purifier(generator, alphas="linear", checkpoint=checkpoint)(pixels, noise).square().sum().backward()
        found.append(pixels.grad)
    assert found[0] is not None and found[0].abs().sum() > 0
    assert torch.allclose(found[0], found[1], atol=1e-7)


def test_gradient_by_finite_differences(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator.double(), alphas="linear").double()
    pixels = (0.25 + 0.5 * images[:1]).double().requires_grad_(True)
    noise = purifier.named_noise([0], pixels.detach(), seed=0)
    weights = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(x: torch.Tensor) -> torch.Tensor:
        return (weights * purifier(x, noise)).sum()

    (slope,) = torch.autograd.grad(value(pixels), pixels)
    direction = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    step = 1e-6 * direction
    measured = (value(pixels + step) - value(pixels - step)).detach() / 2e-6
    assert torch.isclose(measured, (slope * direction).sum(), rtol=1e-5)


def test_noise_before_the_encoder_is_drawn_for_each_pass(generator: NVAE, images: torch.Tensor) -> None:
    purifier = Purifier(generator, alphas="none", preprocess=NormNoise(1.0))
    assert purifier.randomised
    assert not torch.allclose(purifier(images), purifier(images), atol=1e-4)


def test_mistakes(generator: NVAE, images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"attenuation is 1.5"):
        Purifier(generator, alphas="linear", attenuation=1.5)
    with pytest.raises(UserError, match="3 values, but the generator has 4"):
        Purifier(generator, alphas=[0, 0, 0])
    purifier = Purifier(generator, alphas="linear")
    with pytest.raises(ValueError, match="generator makes"):
        purifier(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="noise is"):
        purifier(images, purifier.sample_noise(2, images))
    with pytest.raises(ValueError, match="noise is int: expected a list of 4 tensors, one a latent"):
        purifier(images, noise=1)  # type: ignore[arg-type]
