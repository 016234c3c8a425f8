"""Generators on disk: the published layout and ours, and what is said of files that are neither."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.models.generators import NVAE, load_generator, nvae, save_nvae
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import linear, noise, pictures
from tests.models.generators.test_nvae import CELEBA64

Configuration = Callable[..., dict[str, Any]]


def published(path: Path, model: NVAE, **entries: Any) -> Path:
    """A file in the published layout."""
    content = {"configuration": model.configuration, "state_dict": model.state_dict(), "epoch": 3, **entries}
    torch.save(content, path)
    return path


def test_the_entry_of_the_temperature_is_taken(tmp_path: Path, configuration: Configuration) -> None:
    model, other = NVAE(configuration()), NVAE(configuration(), seed=1)
    path = published(tmp_path / "nvae.pt", model, **{"state_dict_temp=0.6": other.state_dict()})
    loaded = NVAE.load(path)
    assert loaded.fingerprint() == other.fingerprint() and loaded.temperature == 0.6
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    with pytest.raises(UserError, match=r"temperature is 0.8, .* moments for 0.6 only"):
        NVAE.load(path, temperature=0.8)
    plain = published(tmp_path / "plain.pt", model)
    assert NVAE.load(plain, temperature=0.8).fingerprint() == model.fingerprint()


def test_ours_holds_each_temperature_once_and_rebuilds_the_model(tmp_path: Path, configuration: Configuration) -> None:
    model = NVAE(configuration() | {"levels": 17})
    name = "decoder_tower.scale_1.group_0.cell_0.residual.0.running_mean"
    changed = {name: torch.full_like(model.state_dict()[name], 0.25)}
    path = tmp_path / "ours.safetensors"
    save_nvae(model, path, at={0.6: changed})
    loaded = NVAE.load(path)
    assert loaded.configuration == model.configuration and loaded.levels == 17
    differing = [key for key, value in loaded.state_dict().items() if not torch.equal(value, model.state_dict()[key])]
    assert differing == [name] and bool((loaded.state_dict()[name] == 0.25).all())
    first = path.read_bytes()
    save_nvae(model, path, at={0.6: changed})
    assert path.read_bytes() == first


def test_half_precision_halves_the_file_and_hardly_moves_the_images(
    tmp_path: Path, configuration: Configuration
) -> None:
    model = NVAE(configuration(initial_channels=16))
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_nvae(model, whole)
    save_nvae(model, half, half=True)
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    loaded, images = NVAE.load(half), pictures(2, (1, 8, 8))
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    found, expected = (each.decode(each.encode(images), linear(each), noise(each, 2)) for each in (loaded, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_names_of_wrapped_networks_are_those_within(tmp_path: Path, configuration: Configuration) -> None:
    model = NVAE(configuration())
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    loaded = NVAE.load(published(tmp_path / "nvae.pt", model, state_dict=wrapped))
    assert loaded.fingerprint() == model.fingerprint()


def test_a_published_file_in_half_precision_computes_in_float32(tmp_path: Path, configuration: Configuration) -> None:
    model = NVAE(configuration())
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    loaded, images = NVAE.load(published(tmp_path / "nvae.pt", model, state_dict=half)), pictures(2, (1, 8, 8))
    found, expected = (each.decode(each.encode(images), linear(each), noise(each, 2)) for each in (loaded, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_a_generator_with_weights_that_are_no_numbers_is_refused(tmp_path: Path, configuration: Configuration) -> None:
    model = NVAE(configuration())
    state = {**model.state_dict(), "const_prior": model.state_dict()["const_prior"] * float("nan")}
    with pytest.raises(UserError, match=r"nvae\.pt has NaN or infinite numbers in const_prior"):
        NVAE.load(published(tmp_path / "nvae.pt", model, state_dict=state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no 'configuration'"),
        ([1], "holds list"),
        ({"configuration": {"autoencoder": {}, "resolution": [1, 8, 8]}}, "no 'state_dict'"),
    ],
)
def test_what_is_no_generator_is_told(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(UserError, match=message):
        NVAE.load(tmp_path / "file.pt")


def test_weights_of_another_size_are_told(tmp_path: Path, configuration: Configuration) -> None:
    model = NVAE(configuration())
    state = model.state_dict()
    del state["const_prior"]
    with pytest.raises(UserError, match="lacks const_prior"):
        NVAE.load(published(tmp_path / "nvae.pt", model, state_dict=state))
    with pytest.raises(UserError, match="no such file"):
        NVAE.load(tmp_path / "absent.pt")


def test_a_config_asks_for_new_weights_or_for_a_file(tmp_path: Path, configuration: Configuration) -> None:
    sizes = configuration()
    new = nvae(**sizes, temperature=0.8, seed=3)
    path = published(tmp_path / "nvae.pt", new)
    assert nvae(**sizes, checkpoint=path).fingerprint() == new.fingerprint() == nvae(checkpoint=path).fingerprint()
    with pytest.raises(UserError, match=r"generator\.autoencoder\.num_scales is 3, but the checkpoint"):
        nvae(checkpoint=path, autoencoder={"num_scales": 3})
    with pytest.raises(UserError, match=r"generator\.checkpoint is null"):
        nvae()
    with pytest.raises(UserError, match="none is shipped for cifar10"):
        load_generator("shipped", shipped_for="cifar10")


@pytest.mark.full_size
def test_the_published_faces_model_purifies_within_16_gib(tmp_path: Path) -> None:
    with torch.device("meta"):
        blank = NVAE({"autoencoder": CELEBA64, "resolution": [3, 64, 64]})
    source = torch.Generator().manual_seed(0)
    state = {name: 0.05 * torch.randn(value.shape, generator=source) for name, value in blank.state_dict().items()}
    state |= {name: value.abs() + 0.5 for name, value in state.items() if name.endswith(("running_var", "original0"))}
    state |= {name: torch.zeros((), dtype=torch.long) for name in state if name.endswith("num_batches_tracked")}
    path = published(tmp_path / "nvae.pt", blank, **{"state_dict": {}, "state_dict_temp=0.6": state})
    del state
    begin = time.perf_counter()
    model = NVAE.load(path)
    loaded = time.perf_counter()
    images = pictures(1, (3, 64, 64))
    with torch.no_grad():
        found = model.decode(model.encode(images), linear(model), noise(model, 1))
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"loaded in {loaded - begin:.1f} s, purified in {done - loaded:.1f} s, peak {peak / 2**30:.1f} GiB")
    assert found.shape == images.shape and bool(found.isfinite().all()) and peak < 16 * 2**30
