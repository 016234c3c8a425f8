"""DDPM: its levels of noise against diffusers', its steps, its files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.models.generators import DDPM, NoisePrediction, ddpm
from robustcli.models.generators.ddpm import spaced
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import pictures

diffusers = pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): robustcli[diffusion]")

UNET = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 4,
}
CONFIGURATION: dict[str, Any] = {"resolution": [1, 8, 8], "unet": UNET}


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    """The weights of a network of diffusers itself are drawn from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_step_down_is_that_of_diffusers(schedule: str, prediction: str) -> None:
    """Mean and deviation of its ancestral sampler, at neighbouring and at distant levels."""
    settings = {"beta_schedule": schedule, "prediction_type": prediction, "num_train_timesteps": 100}
    model = DDPM({**CONFIGURATION, "schedule": settings})
    theirs = diffusers.DDPMScheduler(**settings, variance_type="fixed_small", clip_sample=True)
    theirs.set_timesteps(20)
    x, eps = drawn(0, 2, 1, 8, 8), drawn(1, 2, 1, 8, 8)
    for level, lower in ((95, 90), (45, 40)):
        with torch.no_grad():
            out = model.unet(x, torch.tensor(level)).sample
            found = model.reverse_step(x, level, lower, torch.zeros_like(x))
            moved = model.reverse_step(x, level, lower, eps) - found
        expected = theirs.step(out, level, x, generator=torch.Generator().manual_seed(2))
        source = drawn(2, 2, 1, 8, 8)
        deviation = theirs._get_variance(level) ** 0.5
        torch.testing.assert_close(expected.prev_sample - deviation * source, found, rtol=0, atol=2e-4)
        torch.testing.assert_close(moved, deviation * eps, rtol=1e-3, atol=1e-5)
    level = torch.tensor([3, 70])
    images = pictures(2, (1, 8, 8))
    noised = theirs.add_noise(2 * images - 1, eps, level)
    torch.testing.assert_close(model.noised(images, level, eps), noised, rtol=0, atol=1e-5)


def test_levels_are_spaced_from_the_top_to_none() -> None:
    assert spaced(1000, 0.1, 100) == list(range(99, -1, -1))
    assert spaced(1000, 0.1, 4) == [99, 66, 33, 0] and spaced(10, 0.1, 4) == [0]


def test_it_learns_the_noise() -> None:
    model, images = DDPM(CONFIGURATION).train(), 0.2 + 0 * pictures(8, (1, 8, 8))
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for number in range(60):
        optimiser.zero_grad()
        loss = NoisePrediction().loss(model, images, number=number, seed=number)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.7 * sum(losses[:10]) / 10


def test_files_of_ours_and_folders_of_diffusers(tmp_path: Path) -> None:
    model, images = DDPM(CONFIGURATION, seed=1), pictures(2, (1, 8, 8))
    model.save(tmp_path / "a.safetensors")
    loaded = DDPM.load(tmp_path / "a.safetensors")
    assert loaded.fingerprint() == model.fingerprint() and not any(p.requires_grad for p in loaded.parameters())
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **UNET)
    unet.load_state_dict(model.unet.state_dict())
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.01)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    unet.save_pretrained(tmp_path / "unet")
    for folder, bottom in (("pipeline", 0.001), ("unet", 1e-4)):
        theirs = ddpm(checkpoint=tmp_path / folder)
        assert theirs.resolution == (1, 8, 8) and abs(float(theirs.signal[0]) - (1 - bottom)) < 1e-6
        x = drawn(0, 2, 1, 8, 8)
        assert torch.equal(theirs.predicted(x, 5), model.predicted(x, 5))
    assert torch.equal(loaded.rebuilt(images, seed=1), model.rebuilt(images, seed=1))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes no UNet2DModel"):
        DDPM({**CONFIGURATION, "unet": {**UNET, "up_block_types": ["UpBlock2D"]}})
    with pytest.raises(UserError, match="the schedule is 'none'"):
        DDPM({**CONFIGURATION, "schedule": {"beta_schedule": "none"}})
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=10, **UNET)
    unet.save_pretrained(tmp_path / "conditional")
    with pytest.raises(UserError, match="conditional on classes"):
        ddpm(checkpoint=tmp_path / "conditional")
