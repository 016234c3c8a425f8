"""Encoder and StyleGAN2 together: mixing, frames, draws and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from robustcli.models.generators import CARS, FACES, E4EEncoder, Frame, StyleGAN2, StyleMixing
from tests.models.generators.conftest import cars, faces, linear, noise, pictures

KINDS = pytest.mark.parametrize("build", [faces, cars])
Build = Callable[..., StyleMixing]


@KINDS
def test_shapes(build: Build) -> None:
    model = build()
    images = pictures(2, model.resolution)
    features = model.encode(images)
    assert [tuple(each.shape) for each in features] == [(2, model.decoder.latents, 16)]
    found = model.decode(features, linear(model), noise(model, 2))
    assert found.shape == images.shape == model.sample(noise(model, 2)).shape
    assert torch.equal(torch.stack(model.latents(features), dim=1), features[0])
    assert not model.bounded
    with pytest.raises(ValueError, match="this generator takes"):
        model.encode(torch.zeros(2, 3, 4, 4))


@KINDS
def test_codes_are_mixed_layer_by_layer_as_the_equations_say(build: Build) -> None:
    """One draw of shape (L,B,D), its mapping, the linear mixture in W+, the mean over cells, black bands, resizing."""
    model, images = build(), pictures(2, build().resolution)
    count, alphas = model.decoder.latents, 0.7 * linear(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        drawn = torch.randn(count, 2, 16)
        torch.manual_seed(11)
        eps = [torch.randn(2, *shape) for shape in model.latent_shapes]
    side, (first, last) = model.frame.side, model.frame.rows
    seen = F.interpolate(2 * images - 1, (side, side), mode="bilinear")[:, :, first:last]
    codes = model.latent_avg + (
        model.encoder(seen)
        if isinstance(model.encoder, E4EEncoder)
        else model.encoder(seen, model.decoder.style(model.encoder.z[0]).expand(2, -1, -1))
    )
    made = torch.stack(
        [(1 - alphas[i]) * codes[:, i] + alphas[i] * model.decoder.style(drawn[i]) for i in range(count)],
        dim=1,
    )
    made = F.adaptive_avg_pool2d(model.decoder(made), side)
    made[:, :, :first], made[:, :, last:] = -1.0, -1.0
    expected = F.interpolate(made, model.resolution[1:], mode="bilinear") / 2 + 0.5
    found = model.decode(model.encode(images), alphas, eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@KINDS
def test_alphas_of_one_forget_the_image_and_each_sample_may_have_its_own(build: Build) -> None:
    model = build()
    images, eps, count = pictures(2, model.resolution), noise(model, 2), model.decoder.latents
    forgotten = model.decode(model.encode(images), torch.ones(count), eps)
    torch.testing.assert_close(forgotten, model.sample(eps))
    own = torch.stack([torch.zeros(count), torch.ones(count)])
    mixed = model.decode(model.encode(images), own, eps)
    torch.testing.assert_close(mixed[1], forgotten[1])
    assert not torch.allclose(mixed[0], forgotten[0])


@KINDS
def test_the_gradient_is_that_of_finite_differences(build: Build) -> None:
    model = build(16).double()
    eps, weights = noise(model, 2, dtype=torch.float64), pictures(2, model.resolution, seed=1, dtype=torch.float64)

    def figure(images: torch.Tensor, checkpoint: bool = False) -> torch.Tensor:
        alphas = 0.7 * linear(model).double()
        return (model.decode(model.encode(images), alphas, eps, checkpoint=checkpoint) * weights).sum()

    images = pictures(2, model.resolution, dtype=torch.float64).requires_grad_()
    gradient = torch.autograd.grad(figure(images), images)[0]
    torch.testing.assert_close(torch.autograd.grad(figure(images, True), images)[0], gradient)
    for seed in range(3):
        step = 1e-6 * (pictures(2, model.resolution, seed=seed, dtype=torch.float64) - 0.5)
        with torch.no_grad():
            difference = figure(images + step) - figure(images - step)
        torch.testing.assert_close(difference, 2 * (gradient * step).sum(), rtol=1e-5, atol=1e-13)


def test_rows_out_of_the_frame_of_cars_are_black_and_have_no_gradient() -> None:
    """At the published sizes: 128 pixels, of which the encoder sees rows 16 to 111 and, by resizing, a quarter more."""
    model = cars(256, frame=CARS)
    images = pictures(1, (3, 128, 128)).requires_grad_()
    found = model.decode(model.encode(images), 0.5 * torch.ones(model.decoder.latents), noise(model, 1))
    assert bool((found[:, :, :16] == 0).all()) and bool((found[:, :, 112:] == 0).all())
    assert bool((found[:, :, 16:112] != 0).all())
    rows = torch.autograd.grad(found.square().sum(), images)[0].abs().amax((0, 1, 3))
    assert bool((rows[:15] == 0).all()) and bool((rows[113:] == 0).all()) and bool((rows[15:113] > 0).all())


def test_frames_of_the_published_models() -> None:
    assert (FACES.image, FACES.side, FACES.rows) == (256, 256, (0, 256))
    assert (CARS.image, CARS.side, CARS.rows) == (128, 256, (32, 224))


@pytest.mark.parametrize("shape", [(16,), (1, 16), (6, 16), (1, 6, 16)])
def test_the_average_code_comes_in_each_of_its_shapes(shape: tuple[int, ...]) -> None:
    model = faces()
    average = pictures(1, shape)[0]
    found = StyleMixing(model.encoder, model.decoder, average, frame=model.frame).latent_avg
    torch.testing.assert_close(found, average.reshape(-1, 16).expand(6, 16))


def test_parts_that_do_not_fit_are_told() -> None:
    decoder = StyleGAN2(16, style_dim=16, channels=[4, 4, 4], mapping_layers=1)
    with pytest.raises(ValueError, match=r"encoder of \(8, 16\) codes in front of \(6, 16\)"):
        StyleMixing(E4EEncoder(32, width=2), decoder, torch.zeros(16))
    with pytest.raises(ValueError, match="images of 16 pixels do not average to 256"):
        StyleMixing(E4EEncoder(16, width=2), decoder, torch.zeros(16), frame=Frame(256, 256, (0, 256)))
