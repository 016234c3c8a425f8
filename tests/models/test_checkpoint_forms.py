"""The forms in which training scripts pass on weights: all are read, and a choice among several is told."""

import argparse
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
from torch import Tensor

from robustcli.models import Classifier, DualEncoder, load, open_clip, save_weights, small_cnn
from robustcli.utils.errors import UserError

State = dict[str, Tensor]
CLASSES = ("a", "b", "c")


@pytest.fixture
def trained() -> Classifier:
    return small_cnn(CLASSES, widths=(4,), seed=7)


@pytest.fixture
def averaged() -> Classifier:
    return small_cnn(CLASSES, widths=(4,), seed=8)


def under(prefix: str, state: State) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 1},
    "net": lambda state: {"net": state, "acc": 93.1},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.1},
    "another name": lambda state: {"weights_of_mine": state},
    "entries in entries": lambda state: {"epoch": 3, "best": {"score": 1.0, "weights": {"net": state}}},
    "lightning": lambda state: {"state_dict": under("model.", state), "hyper_parameters": {"lr": 0.1}},
    "lightning net": lambda state: {"state_dict": under("net.", state)},
    "compiled": lambda state: under("_orig_mod.", state),
    "compiled in data parallel": lambda state: under("module._orig_mod.", state),
    "data parallel compiled": lambda state: under("_orig_mod.module.", state),
    "twice": lambda state: under("module.module.", state),
    "swa": lambda state: {"n_averaged": torch.tensor(5), **under("module.", state)},
    "numpy": lambda state: {"state_dict": state, "best": np.float64(3.0), "epoch": np.int64(2)},
    "argparse": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=1, name="a")},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_set_of_weights(form: str, trained: Classifier, tmp_path: Path) -> None:
    torch.save(FORMS[form](trained.network.state_dict()), tmp_path / "x.pth")
    model = load({"name": "small_cnn", "classes": CLASSES, "widths": (4,)}, tmp_path / "x.pth")
    assert model.fingerprint() == trained.fingerprint() and model.remarks == []


@pytest.mark.parametrize(("usual", "other"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_a_choice_is_told_and_can_be_made(
    usual: str, other: str, trained: Classifier, averaged: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {other: averaged.network.state_dict(), usual: trained.network.state_dict(), "arch": "x"}
    torch.save(content, tmp_path / "x.pth")
    settings = {"name": "small_cnn", "classes": CLASSES, "widths": (4,)}
    with caplog.at_level(logging.WARNING):
        model = load(settings, tmp_path / "x.pth")
    told = f"Of the weights in {tmp_path / 'x.pth'} those of '{usual}' are read; model.weights_key picks {other}."
    assert model.fingerprint() == trained.fingerprint() and told in caplog.text
    assert isinstance(model, Classifier) and model.notes(8, 8) == [told]
    picked = load({**settings, "weights_key": other}, tmp_path / "x.pth")
    assert picked.fingerprint() == averaged.fingerprint() and picked.remarks == []
    with pytest.raises(UserError, match=rf"weights_key is 'ema', but .* has the weights {other}, {usual}: choose one"):
        load({**settings, "weights_key": "ema"}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"weights_key is 'ema', but there is no model\.checkpoint"):
        load({**settings, "weights_key": "ema"})


def test_what_is_no_weights_names_what_the_file_holds(trained: Classifier, tmp_path: Path) -> None:
    torch.save({"weights": {"best": [1.0, 2.0]}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds the entries weights, epoch, not a table of weights"):
        load({"name": "small_cnn", "classes": CLASSES}, tmp_path / "x.pth")
    save_weights(trained, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="has one set of weights, without it"):
        load({"name": "small_cnn", "weights_key": "ema"}, tmp_path / "x.safetensors")


def test_code_is_still_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"w": torch.ones(1)}, "args": argparse.Namespace(x=Evil())}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="could run code"):
        load({"name": "small_cnn", "classes": CLASSES}, tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a small architecture that open_clip has with GELU and, under ``-quickgelu``, with QuickGELU."""
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(library.factory._MODEL_CONFIGS))
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 1}}
    more: dict[str, Any]
    for name, more in (("small-clip", {}), ("small-clip-quickgelu", {"quick_gelu": True})):
        library.factory._MODEL_CONFIGS[name] = {**sizes, **more}
    return "small-clip"


def test_weights_that_fit_either_activation_are_told(
    pair: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = open_clip(f"{pair}-quickgelu", seed=3)
    assert quick.description["quick_gelu"] is True and open_clip(pair).description["quick_gelu"] is False
    torch.save({"state_dict": quick.network.state_dict()}, tmp_path / "finetuned.pt")
    with caplog.at_level(logging.WARNING):
        guessed = open_clip(pair, checkpoint=tmp_path / "finetuned.pt")
    assert f"set model.architecture={pair}-quickgelu" in caplog.text and len(guessed.remarks) == 1
    right = open_clip(f"{pair}-quickgelu", checkpoint=tmp_path / "finetuned.pt")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert right.remarks == [] and torch.equal(right.encode_image(images), quick.encode_image(images))
    assert not torch.equal(guessed.encode_image(images), quick.encode_image(images))


def test_a_file_of_ours_says_its_activation(pair: str, tmp_path: Path, build: Callable[..., DualEncoder]) -> None:
    for name in (pair, f"{pair}-quickgelu"):
        save_weights(open_clip(name, seed=3), tmp_path / "w.safetensors")
        again = open_clip(name, checkpoint=tmp_path / "w.safetensors")
        assert again.remarks == [] and again.description["quick_gelu"] is (name != pair)
    torch.save(build("clip", seed=1).network.state_dict(), tmp_path / "w.pt")
    assert build("clip", checkpoint=tmp_path / "w.pt").remarks == [], "there is no such architecture with QuickGELU"


def settings() -> dict[str, Any]:
    return {"name": "small_cnn", "classes": CLASSES, "widths": (4,)}


@pytest.mark.parametrize(
    ("network", "beside"),
    [
        ("module.model.", "module.normalizer.new_"),
        ("model.", "normalize."),
        ("module.model.", "module.attacker.model."),
    ],
)
def test_a_network_beside_a_normalisation_is_read_and_told(
    network: str, beside: str, trained: Classifier, tmp_path: Path
) -> None:
    state = under(network, trained.network.state_dict()) | {
        f"{beside}mean": torch.zeros(3),
        f"{beside}std": torch.ones(3),
    }
    torch.save({"model": state}, tmp_path / "x.pt")
    model = load(settings(), tmp_path / "x.pt")
    assert model.fingerprint() == trained.fingerprint()
    assert "model.mean and model.std are those of the config" in model.remarks[0]


def test_a_network_behind_a_normalisation_is_read_and_told(trained: Classifier, tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.1.", trained.network.state_dict())}, tmp_path / "x.pth")
    model = load(settings(), tmp_path / "x.pth")
    assert model.fingerprint() == trained.fingerprint()
    assert len(model.remarks) == 1 and "must be that layer's" in model.remarks[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int8), r"x\.pth has \S+ as int8, where the model has real numbers"),
        (lambda value: value > 0, r"x\.pth has \S+ as bool, where the model has real numbers"),
        (lambda value: value * float("nan"), r"x\.pth has NaN or infinite numbers in \S+"),
        (lambda value: value + float("inf"), r"x\.pth has NaN or infinite numbers in \S+"),
    ],
)
def test_weights_that_would_run_and_answer_wrong_are_refused(
    change: Callable[[Tensor], Tensor], message: str, trained: Classifier, tmp_path: Path
) -> None:
    state = trained.network.state_dict()
    last = next(name for name in reversed(state) if state[name].ndim == 2)
    torch.save(state | {last: change(state[last])}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        load(settings(), tmp_path / "x.pth")


def test_files_of_weights_have_the_permissions_of_other_files(trained: Classifier, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights(trained, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_stands_for_its_weights(trained: Classifier, tmp_path: Path) -> None:
    save_weights(trained, tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert load(settings(), tmp_path / "run").fingerprint() == trained.fingerprint()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is the folder .*empty, which holds no weights: expected model\.safetensors"):
        load(settings(), tmp_path / "empty")
