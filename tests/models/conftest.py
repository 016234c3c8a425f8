"""Small networks of every kind that the wrapper must serve."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip as library
import pytest
import torch

from robustcli.models import DualEncoder, build_vocabulary, open_clip, tiny

WORDS = build_vocabulary(["a the small large red blue circle square in top left corner of"])
CAPTIONS = ("a red circle", "the small blue square in the top left corner", "a zebra")
SIZES = {"width": 32, "heads": 2, "layers": 2, "text_width": 32, "text_heads": 2, "text_layers": 2, "embed_dim": 16}

_VIT = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
_TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 16, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "custom_text": {"embed_dim": 16, "vision_cfg": _VIT, "text_cfg": _TEXT, "custom_text": True},
    "bidirectional": {
        "embed_dim": 16,
        "vision_cfg": _VIT,
        "text_cfg": {**_TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "custom_text": True,
    },
    "bidirectional_argmax": {
        "embed_dim": 16,
        "vision_cfg": _VIT,
        "text_cfg": {**_TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": _TEXT,
    },
}
KINDS = ("tiny", *CONFIGS)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Name of a small configuration -> the architecture name under which open_clip finds it."""
    root = tmp_path_factory.mktemp("architectures")
    for name, config in CONFIGS.items():
        (root / name).mkdir()
        content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
        (root / name / "open_clip_config.json").write_text(json.dumps(content))
    return lambda name: f"local-dir:{root / name}"


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """open_clip reads its 49k byte pairs anew for every tokenizer: once is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_clip.get_tokenizer", functools.cache(library.get_tokenizer))
        yield


@pytest.fixture
def build(folder: Callable[[str], str]) -> Callable[..., DualEncoder]:
    """Kind -> a new model with weights drawn from ``seed``."""

    def new(kind: str, **options: Any) -> DualEncoder:
        return tiny(WORDS, **SIZES, **options) if kind == "tiny" else open_clip(folder(kind), **options)

    return new


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, build: Callable[..., DualEncoder]) -> DualEncoder:
    return build(request.param)


@pytest.fixture(autouse=True)
def untouched_generator() -> Iterator[None]:
    """No test of a model may move the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"
