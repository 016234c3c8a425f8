"""Models of the open_clip library, built small and without a network."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustcli.models import DualEncoder, load_weights, open_clip, save_weights
from robustcli.models.assembly import seeded_constructors
from robustcli.utils.errors import UserError

from .conftest import CONFIGS, MEAN, STD


def test_preprocessing_is_the_architectures(build: Callable[..., DualEncoder]) -> None:
    model = build("clip")
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(STD))
    assert model.image_size == 32


def test_seed_decides_random_weights(build: Callable[..., DualEncoder]) -> None:
    assert build("clip").fingerprint() == build("clip").fingerprint() != build("clip", seed=1).fingerprint()


def test_another_image_size_interpolates_the_positions(build: Callable[..., DualEncoder], path: Path) -> None:
    trained = build("clip", seed=1)
    save_weights(trained, path)
    large = build("clip", checkpoint=path, image_size=64)
    assert large.image_size == 64
    assert large.network.visual.positional_embedding.shape == (17, 32)
    assert torch.equal(large.network.visual.conv1.weight, trained.network.visual.conv1.weight)
    save_weights(large, path)
    with pytest.raises(UserError, match=r"visual\.positional_embedding \(17, 32\) in place of \(5, 32\)"):
        load_weights(trained, path)  # not without being asked


def openai_state(model: DualEncoder) -> dict[str, Tensor]:
    """As OpenAI's files are: half precision, and three numbers among the weights."""
    state = {name: weight.half() for name, weight in model.network.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}
    return {**state, **{name: torch.tensor(value) for name, value in numbers.items()}}


def test_openai_weights_bring_their_activation(build: Callable[..., DualEncoder], path: Path, images: Tensor) -> None:
    torch.save(openai_state(build("clip", seed=1)), path.with_suffix(".pt"))
    model = build("clip", checkpoint=path.with_suffix(".pt"))
    kinds = {type(module).__name__ for module in model.network.modules()}
    assert "QuickGELU" in kinds and "GELU" not in kinds
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    save_weights(model, path)
    again = build("clip", checkpoint=path)
    assert torch.equal(again.encode_image(images), model.encode_image(images))


def test_a_path_as_pretrained(build: Callable[..., DualEncoder], path: Path) -> None:
    trained = build("clip", seed=1)
    save_weights(trained, path)
    assert build("clip", pretrained=str(path)).fingerprint() == trained.fingerprint()


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"'ViT-B-15', which open_clip does not know: did you mean 'ViT-B-1"):
        open_clip("ViT-B-15")
    with pytest.raises(UserError, match=r"'openia', neither a file nor a tag of ViT-B-16 .* did you mean 'openai'"):
        open_clip("ViT-B-16", pretrained="openia")
    with pytest.raises(UserError, match="no such file"):
        open_clip("ViT-B-16", pretrained="/absent/weights.pt")


def test_a_download_that_fails_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(UserError, match=r"no route to host.*model\.checkpoint=PATH"):
        open_clip("ViT-B-16", pretrained="openai")


def test_only_a_sigmoid_loss_has_no_ceiling_of_its_scale(build: Callable[..., DualEncoder], tmp_path: Path) -> None:
    assert build("clip").max_logit_scale == 100
    config = {"model_cfg": CONFIGS["clip"] | {"init_logit_bias": -10}, "preprocess_cfg": {"interpolation": "bilinear"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip(f"local-dir:{tmp_path}")
    with torch.no_grad():
        model.network.logit_scale.fill_(4.8)
    assert model.logit_scale.item() == pytest.approx(math.exp(4.8)) and model.interpolation == "bilinear"


def test_seeded_constructors_leave_the_global_generator() -> None:
    with seeded_constructors(3):
        first = torch.rand(2)
    with seeded_constructors(3):
        assert torch.equal(first, torch.rand(2))
