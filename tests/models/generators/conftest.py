"""Small generators and the published outputs that ours are compared with."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from robustcli.models.generators import (
    E4EEncoder,
    Frame,
    Generator,
    StyleGAN2,
    StyleMixing,
    StyleTransformerEncoder,
)

Network = TypeVar("Network", bound=nn.Module)
FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"
AUTOENCODER = {
    "num_scales": 2,
    "num_groups_per_scale": 2,
    "is_adaptive": False,
    "min_groups_per_scale": 1,
    "num_cells_per_group": 1,
    "num_latent_per_group": 2,
    "num_nf_cells": None,
    "initial_channels": 4,
    "num_pre-post_process_blocks": 0,
    "num_pre-post_process_cells": 1,
    "num_logistic_mixtures": 2,
}


@pytest.fixture
def configuration() -> Callable[..., dict[str, Any]]:
    """A configuration of some thousand weights, with changes."""

    def changed(resolution: tuple[int, int, int] = (1, 8, 8), **changes: Any) -> dict[str, Any]:
        return {"autoencoder": AUTOENCODER | changes, "resolution": list(resolution)}

    return changed


@pytest.fixture
def published() -> Callable[[str], Any]:
    """The content of a file of ``../shared/fixtures``; the test is skipped where there are none."""

    def read(name: str) -> Any:
        if not (FIXTURES / name).is_file():
            pytest.skip(f"no {FIXTURES / name}: the published outputs are not on this machine")
        return torch.load(FIXTURES / name, weights_only=True)

    return read


def noise(model: Generator, count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Standard-normal tensors for the latents."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randn((count, *shape), generator=source, dtype=dtype) for shape in model.latent_shapes]


def pictures(count: int, resolution: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random pixels in [0,1]."""
    return torch.rand(count, *resolution, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(model: Generator) -> Tensor:
    """The alphas i/L."""
    number = len(model.latent_shapes)
    return torch.arange(1, number + 1) / number


@pytest.fixture
def filled() -> Callable[..., Any]:
    """The function that gives a network the weights of the published outputs; skipped where those are absent."""
    if not (FIXTURES / "fill.py").is_file():
        pytest.skip(f"no {FIXTURES / 'fill.py'}: the published outputs are not on this machine")
    return runpy.run_path(str(FIXTURES / "fill.py"))["fill"]


def shaken(model: Network, seed: int = 0) -> Network:
    """The network with biases, norms and strengths of noise that are not those of a new one, 0 and 1."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim < 2 and value.is_floating_point():
                value += 0.1 * torch.randn(value.shape, generator=source, dtype=value.dtype)
            if name.endswith("running_var"):
                value.abs_()
    return model.requires_grad_(False)


def faces(
    size: int = 16, *, seed: int = 0, width: int = 2, channels: int = 4, frame: Frame | None = None
) -> StyleMixing:
    """An e4e encoder in front of a StyleGAN2, of some thousand weights."""
    several = [channels] * (size.bit_length() - 2)
    decoder = StyleGAN2(size, style_dim=8 * width, channels=several, mapping_layers=2, seed=seed)
    encoder = E4EEncoder(size, width=width, seed=seed)
    return _mixing(encoder, decoder, frame or Frame(size, size, (0, size)), seed)


def cars(size: int = 32, *, seed: int = 0, frame: Frame | None = None) -> StyleMixing:
    """A Style-Transformer encoder in front of a StyleGAN2, whose images have black bands."""
    decoder = StyleGAN2(size, style_dim=16, channels=[4] * (size.bit_length() - 2), mapping_layers=2, seed=seed)
    encoder = StyleTransformerEncoder(latents=decoder.latents, width=2, seed=seed)
    return _mixing(encoder, decoder, frame or Frame(size // 4, size // 2, (size // 16, size // 2 - size // 16)), seed)


def _mixing(encoder: E4EEncoder | StyleTransformerEncoder, decoder: StyleGAN2, frame: Frame, seed: int) -> StyleMixing:
    average = torch.randn(decoder.style_dim, generator=torch.Generator().manual_seed(seed))
    return shaken(StyleMixing(encoder, decoder, average, frame=frame), seed)
