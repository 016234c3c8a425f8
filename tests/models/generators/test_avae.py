"""A-VAE: the released outputs, its sizes, its gradient, and the turns of its training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.models.generators import AVAE, DDPM, Adversarial, avae
from robustcli.models.generators.avae import published as sizes
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import pictures

TINY = {"resolution": [1, 8, 8], "pool": 1, "encoder": [4, 6], "decoder": [5, 4, 3], "style": 6, "layers": 2}


def noise(model: AVAE, count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = (model.latent_shape, *model.map_shapes)
    return [torch.randn((count, *shape), generator=source, dtype=dtype) for shape in shapes]


def test_code_of_the_released_encoder(published: Callable[[str], Any], filled: Callable[..., Any]) -> None:
    expected, model = published("avae64_ref.pt"), filled(AVAE(sizes(64)), "unit")
    code = model.encode(expected["x"])
    for found, name in zip(code, ("skip", "m", "v"), strict=True):
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5)


def test_images_of_the_released_decoder(published: Callable[[str], Any], filled: Callable[..., Any]) -> None:
    """Its outputs are in [-1,1], before they are put to [0,1]."""
    expected, model = published("avae64_ref.pt"), filled(AVAE(sizes(64)), "unit")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12)
        found = model.decode(model.encode(expected["x"]), torch.randn(1, 512, 4, 4), expected["noise"])
    scale = expected["out_seed12"].abs().max()
    torch.testing.assert_close((2 * found - 1) / scale, expected["out_seed12"] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "millions"), [(64, 41.8), (128, 43.5), (256, 45.2)])
def test_released_sizes(size: int, millions: float) -> None:
    with torch.device("meta"):
        model = AVAE(sizes(size))
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1) == millions
    assert AVAE.sizes_of(model.state_dict()) == sizes(size)


def test_gradient_by_finite_differences() -> None:
    model = AVAE(TINY).double()
    for name, weight in model.named_parameters():  # zero at the start, which would hide a mistake in their gradient
        if "noise" in name or name.endswith("bias"):
            weight.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    pixels = (0.25 + 0.5 * pictures(1, (1, 8, 8), dtype=torch.float64)).requires_grad_(True)
    eps, *maps = noise(model, 1, torch.float64)
    weights, direction = pictures(2, (1, 8, 8), seed=1, dtype=torch.float64).split(1)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (weights * model.decode(model.encode(x), eps, maps)).sum()

    (slope,) = torch.autograd.grad(value(pixels), pixels)
    step = 1e-6 * direction
    measured = (value(pixels + step) - value(pixels - step)).detach() / 2e-6
    assert slope.abs().max() > 0
    assert torch.isclose(measured, (slope * direction).sum(), rtol=1e-5)


def test_batches_train_critic_and_generator_in_turn() -> None:
    model, images = AVAE(TINY, critic=True).train(), pictures(4, (1, 8, 8))
    critics = {name for name, _ in model.named_parameters() if name.startswith("critic.")}
    for number in (0, 1):
        model.zero_grad(set_to_none=True)
        Adversarial(pixel=1.0).loss(model, images, number=number, seed=3).backward()
        moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
        assert moved == (critics if number == 0 else {n for n, _ in model.named_parameters()} - critics)
        assert all(weight.requires_grad for weight in model.parameters())


def test_the_critic_learns_to_tell() -> None:
    """Its loss falls where only it is trained; a wrong sign would raise it."""
    model, images = AVAE(TINY, critic=True).train(), pictures(8, (1, 8, 8))
    optimiser = torch.optim.Adam(model.critic.parameters(), lr=0.01, betas=(0.0, 0.99))
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = Adversarial().loss(model, images, number=0, seed=0)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        real, made = model.critic(images).mean(), model.critic(model.drawn(images, seed=0)[1]).mean()
    assert losses[-1] < losses[0] and real > made


def test_files(tmp_path: Path) -> None:
    model = AVAE(TINY, critic=True, seed=2)
    model.save(tmp_path / "a.safetensors")
    loaded = AVAE.load(tmp_path / "a.safetensors", temperature=0.3)
    assert loaded.temperature == 0.3 and not hasattr(loaded, "critic")
    images = pictures(2, (1, 8, 8))
    eps, *maps = noise(model, 2)
    model.temperature = 0.3
    assert torch.equal(loaded.decode(loaded.encode(images), eps, maps), model.decode(model.encode(images), eps, maps))
    again = avae(checkpoint=tmp_path / "a.safetensors")
    assert hasattr(again, "critic") and torch.equal(again.encode(images).mean, loaded.encode(images).mean)
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="does not say its sizes"):
        AVAE.load(tmp_path / "b.pt")
    with pytest.raises(UserError, match="is of 'avae': expected one of the generator 'ddpm'"):
        DDPM.load(tmp_path / "a.safetensors")


def test_mistakes() -> None:
    with pytest.raises(UserError, match="give both"):
        avae(resolution=[1, 8, 8])
    with pytest.raises(UserError, match="decoder has 2 blocks, but from 1/4 to the image it takes 3"):
        AVAE({**TINY, "decoder": [5, 4]})
    with pytest.raises(UserError, match="not divisible by"):
        AVAE({**TINY, "resolution": [1, 10, 10]})
    with pytest.raises(ValueError, match="this generator takes"):
        AVAE(TINY).encode(pictures(1, (3, 8, 8)))
