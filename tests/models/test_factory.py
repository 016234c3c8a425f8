"""From names and config nodes to models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustcli.models import DualEncoder, load, restore, save_weights, tiny
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tiny", "widht": 3}, r"model\.widht is not an option of tiny .* did you mean 'width'"),
        ({"name": "tiny", "trainable": "vision"}, r"model\.trainable is 'vision': expected image, text or both"),
        ({"_target_": "robustcli.models.tinny"}, "cannot be imported"),
        ({"_target_": "nothing"}, "cannot be imported"),
        ({"name": "open_clip"}, r"model\.architecture is missing"),
        ("tinny", "did you mean 'tiny'"),
    ],
)
def test_mistakes(config: dict[str, object] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config, vocabulary=WORDS)


def test_a_checkpoint_of_another_factory(build: Callable[..., DualEncoder], path: Path) -> None:
    save_weights(build("clip"), path)
    with pytest.raises(UserError, match="not saved from tiny"):
        load("tiny", path)
    save_weights(build("tiny"), path)
    with pytest.raises(UserError, match=r"saved from tiny, model\.architecture is ViT-B-16"):
        load("ViT-B-16", path)


def test_a_foreign_file_does_not_say_what_it_is(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="does not say which model"):
        restore(tmp_path / "foreign.pt")
