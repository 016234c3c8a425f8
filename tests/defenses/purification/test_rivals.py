"""Rivals of the purifier: what they draw, what gradient they have, and what is left of an image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustcli.defenses import AdversarialVAE, Cleaner, DiffPure, NoisyVAE, PurifiedClassifier
from robustcli.models import Classifier
from robustcli.models.generators import AVAE, DDPM, NVAE, Denoising
from robustcli.utils.errors import UserError
from tests.models.generators.test_avae import TINY


@pytest.fixture
def images() -> Tensor:
    return 0.25 + 0.5 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def diffusion() -> DDPM:
    pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): robustcli[diffusion]")
    from tests.models.generators.test_ddpm import CONFIGURATION

    return DDPM({**CONFIGURATION, "schedule": {"num_train_timesteps": 50}})


@pytest.fixture(params=["diffpure", "avae", "ndvae"])
def cleaner(request: pytest.FixtureRequest, generator: NVAE) -> Cleaner:
    if request.param == "diffpure":
        return DiffPure(request.getfixturevalue("diffusion"), t=0.2, steps=4)
    return AdversarialVAE(AVAE(TINY)) if request.param == "avae" else NoisyVAE(generator, noise=0.05)


def test_gradient_by_finite_differences(cleaner: Cleaner, images: Tensor) -> None:
    """Of the whole chain, in float64, with the noise of one draw fixed."""
    cleaner = cleaner.double()
    pixels = images[:1].double().requires_grad_(True)
    noise = [0.3 * part for part in cleaner.named_noise([0], pixels.detach(), seed=0)]  # away from where pixels are cut
    source = torch.Generator().manual_seed(2)
    weights, direction = (torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=source) for _ in range(2))

    def value(x: Tensor) -> Tensor:
        return (weights * cleaner.finish(cleaner.prepare(x), noise)).sum()

    (slope,) = torch.autograd.grad(value(pixels), pixels)
    step = 1e-7 * direction
    measured = (value(pixels + step) - value(pixels - step)).detach() / 2e-7
    assert slope.abs().max() > 0
    assert torch.isclose(measured, (slope * direction).sum(), rtol=1e-4)


def test_an_answer_is_drawn_by_name_and_averaged(cleaner: Cleaner, classifier: Classifier, images: Tensor) -> None:
    defence = PurifiedClassifier(classifier, cleaner, draws=3).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = defence.answers(images, 2, names=[4, 5, 6])
        torch.manual_seed(0)
        torch.testing.assert_close(defence.answers(images[1:], 2, names=[5, 6]), whole[:, 1:], rtol=0, atol=1e-5)
        torch.manual_seed(1)
        assert not torch.allclose(defence.answers(images, 2, names=[4, 5, 6]), whole)


def test_the_way_back_undoes_the_noise_that_was_put_on(diffusion: DDPM, images: Tensor) -> None:
    """With the true noise for a prediction, whatever is drawn on the way, the image comes back."""

    class Oracle(torch.nn.Module):
        def forward(self, x: Tensor, levels: Tensor, return_dict: bool = True) -> tuple[Tensor]:
            signal = diffusion.signal.to(x)[levels].view(-1, 1, 1, 1)
            return ((x - signal.sqrt() * (2 * images - 1)) / (1 - signal).sqrt(),)

    diffusion.unet = Oracle()
    cleaner = DiffPure(diffusion, t=0.5, steps=5)
    torch.testing.assert_close(cleaner(images), images, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"steps is 100, but t = 0\.5 of 50 levels are 25"):
        DiffPure(diffusion, t=0.5, steps=100)
    with pytest.raises(UserError, match="above 0 and up to 1"):
        DiffPure(diffusion, t=0, steps=1)


def test_a_shorter_chain_is_another_defence(diffusion: DDPM, images: Tensor) -> None:
    cleaner = DiffPure(diffusion, t=0.2, steps=9)
    short = cleaner.shortened()
    assert len(short.levels) == 3 and short.levels[0] == cleaner.levels[0] and short.levels[-1] == 0
    assert short.model is diffusion and short.t == cleaner.t


def test_an_nd_vae_sees_spoilt_images_and_is_asked_for_clean_ones(
    generator: NVAE, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, seen = Denoising(classifier="digits", eps=1.0, noise=0.0), []
    infer = generator.infer

    def watched(spoilt: Tensor, noise: list[Tensor]) -> object:
        seen.append(spoilt)
        return infer(spoilt, noise)

    monkeypatch.setattr(generator, "infer", watched)
    nll, _ = objective.terms(generator, images, seed=0)
    change = (seen[0] - images).flatten(1)
    assert bool((change.norm(dim=1) <= 1.0 + 1e-5).all()) and bool((change.abs() > 0.1).any(1).all())
    plain, _ = Denoising(classifier="digits", eps=0.0, noise=0.0).terms(generator, images, seed=0)
    assert not torch.allclose(nll, plain)
    assert torch.allclose(seen[1], images)


def test_fgsm_fools_the_classifier(shipped_digits: Callable[[], tuple[Classifier, Tensor, Tensor]]) -> None:
    network, pictures, labels = shipped_digits()
    attacked = Denoising(classifier="digits", eps=1.5, noise=0.0)._attacked(pictures)
    before, after = (float((network(each).argmax(1) == labels).float().mean()) for each in (pictures, attacked))
    assert before > 0.9 and after < before - 0.3
