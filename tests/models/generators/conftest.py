"""Small generators and the published outputs that ours are compared with."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.models.generators import NVAE

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


@pytest.fixture
def filled() -> Callable[..., Any]:
    """A function that draws the weights of a module from their names, as those of the published outputs were."""
    path = FIXTURES / "fill.py"
    if not path.is_file():
        pytest.skip(f"no {path}: the published outputs are not on this machine")
    namespace = runpy.run_path(str(path))
    return namespace["fill"]  # type: ignore[no-any-return]


def noise(model: NVAE, count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Standard-normal tensors for the latents."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randn((count, *shape), generator=source, dtype=dtype) for shape in model.latent_shapes]


def pictures(count: int, resolution: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random pixels in [0,1]."""
    return torch.rand(count, *resolution, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(model: NVAE) -> Tensor:
    """The alphas i/L."""
    number = len(model.latent_shapes)
    return torch.arange(1, number + 1) / number
