"""Noise of an exact norm, blur and JPEG."""

from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from robustcli.attacks import PGD, ThreatModel
from robustcli.data import SceneClasses
from robustcli.defenses import PurifiedClassifier, Step
from robustcli.defenses.jpeg import JPEG
from robustcli.defenses.preprocessing import GaussianBlur, NormNoise, preprocessing
from robustcli.defenses.purification.cleaner import StraightThrough
from robustcli.models import load
from robustcli.utils.errors import UserError


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_noise_has_its_norm_for_each_sample() -> None:
    grey = torch.full((3, 3, 16, 16), 0.5)
    moved = NormNoise(0.7)(grey)
    assert torch.allclose((moved - grey).flatten(1).norm(dim=1), torch.full((3,), 0.7), atol=1e-5)
    assert not torch.equal(moved[0], moved[1])


def test_noise_is_clamped_and_follows_what_it_is_given() -> None:
    noise = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    moved = NormNoise(1.0)(torch.tensor([0.1, 0.5]).view(1, 1, 1, 2), noise)
    assert torch.allclose(moved.flatten(), torch.tensor([0.7, 1.0]))
    assert NormNoise(1.0)(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)).tolist() == [[[[0.0, 0.0]]]]


def test_noise_is_drawn_by_the_global_generator() -> None:
    first, second = images(2, 1, 8, 8), NormNoise(1.0)
    torch.manual_seed(5)
    once = second(first)
    assert not torch.equal(once, second(first))
    torch.manual_seed(5)
    assert torch.equal(once, second(first))
    assert second.randomised and not NormNoise(0).randomised
    assert torch.equal(NormNoise(0)(first), first)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_that_of_torchvision(sigma: float) -> None:
    picture = images(2, 3, 20, 31)
    expected = gaussian_blur(picture, [11, 11], [sigma, sigma])
    assert torch.allclose(GaussianBlur(sigma=sigma)(picture), expected, atol=1e-6)


def test_blur_is_that_of_scipy_on_an_image_smaller_than_its_kernel() -> None:
    picture = images(1, 1, 5, 20).double()
    found = GaussianBlur(sigma=1.0, kernel=11)(picture)[0, 0]
    expected = torch.from_numpy(gaussian_filter(picture[0, 0].numpy(), 1.0, radius=(4, 5), mode="mirror"))
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(GaussianBlur()(images(1, 3, 1, 1)), images(1, 3, 1, 1))


def test_noise_and_blur_have_their_own_gradients() -> None:
    for step in (GaussianBlur(), NormNoise(0.1)):
        picture = (0.2 + 0.6 * images(1, 1, 6, 6).double()).requires_grad_(True)
        noise = torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        arguments = (picture,) if isinstance(step, GaussianBlur) else (picture, noise)
        assert torch.autograd.gradcheck(step, arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_a_lower_quality(channels: int) -> None:
    picture = images(2, channels, 16, 16)
    far = [float((JPEG(quality=quality)(picture) - picture).abs().mean()) for quality in (5, 50, 95)]
    assert far[0] > far[1] > far[2] > 0
    flat = torch.full((1, channels, 16, 16), 128 / 255)
    assert torch.allclose(JPEG(quality=95)(flat), flat, atol=1.5 / 255)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 8), (1, 3, 20, 13), (1, 1, 5, 11)])
def test_the_smooth_jpeg_is_near_the_codec(shape: tuple[int, ...]) -> None:
    picture = F.interpolate(images(*shape[:2], 4, 4), shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)
    jpeg = JPEG(quality=60)
    error, change = (jpeg.smooth(picture) - jpeg.compressed(picture), jpeg.compressed(picture) - picture)
    assert error.square().mean() < 0.3 * change.square().mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_jpeg_is_that_of_the_smooth_one_by_finite_differences(channels: int) -> None:
    picture, jpeg = images(1, channels, 8, 8).double().requires_grad_(True), JPEG(quality=30)
    assert torch.autograd.gradcheck(jpeg.smooth, picture, atol=1e-4)
    compressed, weights = jpeg(picture), images(1, channels, 8, 8).double()
    assert torch.equal(compressed, jpeg.compressed(picture))
    gradients = [torch.autograd.grad((made * weights).sum(), picture)[0] for made in (compressed, jpeg.smooth(picture))]
    assert torch.equal(*gradients)


def test_what_the_codec_throws_away_gets_no_gradient() -> None:
    """Colour that alternates by the pixel does not survive: straight through it would cost an attack its budget."""
    noise, weights = images(2, 3, 16, 16)
    picture = (0.4 + noise.unsqueeze(0) / 5).requires_grad_(True)
    (gradient,) = torch.autograd.grad((JPEG(quality=50)(picture) * weights).sum(), picture)
    blue = torch.tensor([0.0, -0.344136, 1.772]).view(3, 1, 1)  # of the same brightness
    board = (-1.0) ** (torch.arange(16).view(-1, 1) + torch.arange(16))
    assert abs(float((gradient[0] * blue * board).sum())) < 1e-4 * float(gradient.norm())
    assert abs(float((gradient[0] * blue).sum())) > 0.1, "colour that does not alternate does"


def test_pgd_by_the_smooth_gradient_leaves_less_than_straight_through() -> None:
    data, network, left = SceneClasses(split="test"), load("scene_classes"), {}
    images, labels, threat = data.images(torch.arange(24)), data.labels[:24], ThreatModel(norm="l2", eps=0.5)
    for gradient, cleaner in {"smooth": Step(JPEG()), "identity": StraightThrough(Step(JPEG()))}.items():
        model = PurifiedClassifier(network, cleaner)
        found = PGD(steps=20, loss="margin")(model, images, labels, threat)
        left[gradient] = int((model(found.images).argmax(1) == labels).sum())
    assert left["smooth"] <= left["identity"] - 3, left


def test_jpeg_of_nothing_and_of_two_channels() -> None:
    assert JPEG()(images(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        JPEG()(images(1, 2, 8, 8))


def test_what_a_config_names() -> None:
    assert preprocessing("none") is None and preprocessing(None) is None
    noise, blur, jpeg = preprocessing("noise"), preprocessing({"name": "blur", "sigma": 2}), preprocessing("jpeg")
    assert isinstance(noise, NormNoise) and noise.eps == 4.0
    assert isinstance(blur, GaussianBlur) and (blur.sigma, blur.kernel) == (2.0, 11)
    assert isinstance(jpeg, JPEG) and jpeg.quality == 75


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nois", "did you mean 'noise'"),
        ({"eps": 2.0}, "no name"),
        ({"name": "noise", "epsilon": 2.0}, "did you mean 'eps'"),
        ({"name": "noise", "eps": -1.0}, "eps of the noise is -1"),
        ({"name": "noise", "eps": float("nan")}, "eps of the noise is nan"),
        ({"name": "blur", "sigma": 0}, "sigma of the blur is 0"),
        ({"name": "blur", "kernel": 4}, "an odd whole number"),
        ({"name": "jpeg", "quality": 0}, "quality of the JPEG is 0"),
    ],
)
def test_mistakes(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preprocessing(spec)
