"""From names and config nodes to models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcli.models import DualEncoder, load, restore, save_weights, tiny
from robustcli.models.names import preset, presets, resolve
from robustcli.models.registry import MODELS, import_factory
from robustcli.models.weights import ASSETS
from robustcli.utils.errors import UserError

from .conftest import SIZES, WORDS


def test_a_name(path: Path) -> None:
    model = load("tiny", vocabulary=WORDS)
    assert model.fingerprint() == tiny(WORDS).fingerprint()
    save_weights(model, path)
    assert load("tiny", path).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("key", [{"name": "tiny"}, {"_target_": "robustcli.models.tiny"}])
def test_a_config_node(key: dict[str, str]) -> None:
    model = load({**key, **SIZES, "seed": 4, "trainable": "text"}, vocabulary=WORDS)
    assert model.fingerprint() == tiny(WORDS, **SIZES, seed=4).fingerprint()
    assert not any(weight.requires_grad for weight in model.network.visual.parameters())
    assert all(weight.requires_grad for weight in model.network.text.parameters())


def test_open_clip_by_either_name(folder: Callable[[str], str]) -> None:
    architecture = folder("clip")
    by_name, by_target = load(architecture), load({"name": "open_clip", "architecture": architecture})
    assert by_name.fingerprint() == by_target.fingerprint()
    assert load(architecture, vocabulary=WORDS).fingerprint() == by_name.fingerprint()  # it has its own tokens


def test_the_checkpoint_given_replaces_the_configs_own(path: Path) -> None:
    save_weights(tiny(WORDS, **SIZES, seed=7), path)
    model = load({"name": "tiny", "checkpoint": "shipped"}, checkpoint=path)
    assert model.fingerprint() == tiny(WORDS, **SIZES, seed=7).fingerprint()


@pytest.mark.parametrize("name", [name for name in presets() if name not in MODELS])
def test_a_name_means_what_it_means_on_the_command_line(name: str) -> None:
    """Such as ``vit_b_16``, which is also an architecture of torchvision."""
    node = preset(name)
    assert resolve(name) == (import_factory(node.pop("_target_")), node)
    factory, changed = resolve({"name": name, "checkpoint": "other"})
    assert changed == {**node, "checkpoint": "other"} and factory is resolve(name)[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tiny", "widht": 3}, r"model\.widht is not an option of tiny .* did you mean 'width'"),
        ({"name": "tiny", "trainable": "vision"}, r"model\.trainable is 'vision': expected image, text or both"),
        ({"_target_": "robustcli.models.tinny"}, "cannot be imported"),
        ({"_target_": "nothing"}, "cannot be imported"),
        ({"name": "open_clip"}, r"model\.architecture is missing"),
        ("tinny", "did you mean 'tiny'"),
        ("nvae", "which is a generator"),
        ({"name": "small_cnn", "classes": 3, "widths": "wide"}, "model small_cnn cannot be made of its settings"),
    ],
)
def test_mistakes(config: dict[str, object] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config, vocabulary=WORDS)


def test_a_checkpoint_of_another_factory(build: Callable[..., DualEncoder], path: Path) -> None:
    save_weights(build("clip"), path)
    with pytest.raises(UserError, match="saved from open_clip, not from tiny"):
        load("tiny", path)
    save_weights(build("tiny"), path)
    with pytest.raises(UserError, match=r"saved from tiny, model\.architecture is ViT-B-16"):
        load("ViT-B-16", path)


def test_a_file_of_a_generator_is_told() -> None:
    with pytest.raises(UserError, match=r"is of a generator: read it with .*load_generator"):
        restore(ASSETS / "nvae_digits.safetensors")


def test_a_foreign_file_does_not_say_what_it_is(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "foreign.pt")
    odd = {"robustcli": json.dumps({"model": {"factory": ["tiny"]}})}
    save_file({"weight": torch.ones(1)}, tmp_path / "odd.safetensors", metadata=odd)
    for name in ("foreign.pt", "odd.safetensors"):
        with pytest.raises(UserError, match=r"does not say which model.*load\('resnet50', path\)"):
            restore(tmp_path / name)
