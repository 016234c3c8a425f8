"""Checkpoints: what is written, and every format that is read."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustcli.models import DualEncoder, load_classifier, load_weights, restore, save_weights, tiny, weights
from robustcli.utils.errors import UserError

from .conftest import SIZES, WORDS


def other_weights(build: Callable[..., DualEncoder], kind: str) -> tuple[DualEncoder, DualEncoder]:
    trained, fresh = build(kind, seed=1), build(kind, seed=2)
    assert trained.fingerprint() != fresh.fingerprint()
    return trained, fresh


def test_round_trip_keeps_every_bit(build: Callable[..., DualEncoder], model: DualEncoder, path: Path) -> None:
    with torch.no_grad():
        next(model.network.visual.parameters()).add_(0.125)
    save_weights(model, path, {"dataset": "scenes"})
    again = restore(path)
    assert again.fingerprint() == model.fingerprint()
    assert again.description == model.description
    assert torch.equal(again.mean, model.mean) and torch.equal(again.std, model.std)


def test_mean_and_std_come_from_the_file(build: Callable[..., DualEncoder], path: Path) -> None:
    model = build("clip")
    model.description["mean"] = [0.1, 0.2, 0.3]
    save_weights(model, path)
    torch.testing.assert_close(build("clip", checkpoint=path).mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_equal_weights_give_equal_files(model: DualEncoder, path: Path) -> None:
    save_weights(model, path, {"b": "1", "a": "2"})
    first = path.read_bytes()
    save_weights(model, path, {"a": "2", "b": "1"})
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file(
    build: Callable[..., DualEncoder], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(state: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    path.write_bytes(b"old")
    monkeypatch.setattr(weights, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build("tiny"), path)
    assert [(entry.name, entry.read_bytes()) for entry in path.parent.iterdir()] == [(path.name, b"old")]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files(build: Callable[..., DualEncoder], tmp_path: Path, wrapped: bool, prefix: str) -> None:
    trained, fresh = other_weights(build, "clip")
    state = {prefix + name: weight for name, weight in trained.network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state} if wrapped else state, tmp_path / "model.pt")
    load_weights(fresh, tmp_path / "model.pt")
    assert fresh.fingerprint() == trained.fingerprint()


@pytest.mark.parametrize(("source", "target"), [("clip", "custom_text"), ("custom_text", "clip")])
def test_text_tower_under_either_name(build: Callable[..., DualEncoder], path: Path, source: str, target: str) -> None:
    trained, fresh = build(source, seed=1), build(target, seed=2)
    torch.save(trained.network.state_dict(), path.with_suffix(".pt"))
    load_weights(fresh, path.with_suffix(".pt"))
    tokens = trained.tokenize(["a red circle"])
    assert torch.equal(fresh.encode_text(tokens), trained.encode_text(tokens))


def test_one_element_in_another_shape(build: Callable[..., DualEncoder], tmp_path: Path) -> None:
    trained, fresh = other_weights(build, "clip")
    state = trained.network.state_dict()
    state["logit_scale"] = state["logit_scale"].reshape(1)
    torch.save(state, tmp_path / "model.bin")
    load_weights(fresh, tmp_path / "model.bin")
    assert fresh.fingerprint() == trained.fingerprint()


def test_weights_of_another_model_change_nothing(build: Callable[..., DualEncoder], path: Path) -> None:
    save_weights(build("clip"), path)
    model = build("resnet")
    before = model.fingerprint()
    with pytest.raises(
        UserError, match=r"is of another model .*: it lacks visual\.\S+, visual\.\S+ and \d+ more; .* no"
    ):
        load_weights(model, path)
    assert model.fingerprint() == before


def test_weights_of_another_size(build: Callable[..., DualEncoder], path: Path) -> None:
    save_weights(tiny(WORDS, **{**SIZES, "embed_dim": 8}), path)
    with pytest.raises(UserError, match=r"projection\.weight \(8, 32\) in place of \(16, 32\)"):
        load_weights(build("tiny"), path)


def test_another_vocabulary_of_the_same_size(build: Callable[..., DualEncoder], path: Path) -> None:
    save_weights(tiny(WORDS[::-1], **SIZES), path)
    with pytest.raises(UserError, match="another vocabulary"):
        load_weights(build("tiny"), path)


class Foreign:
    """Stands for any object whose unpickling runs code."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(1)}, "arguments": Foreign()}, tmp_path / "object.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Foreign()))
    for name in ("object.pt", "plain.pt"):
        with pytest.raises(UserError, match="Python objects beside tensors"):
            weights.read_weights(tmp_path / name)


def test_torchscript_without_weights_is_no_table_of_them(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.ones(1)).save(str(tmp_path / "jit.pt"))
    with pytest.raises(UserError, match="holds dict, not a table of weights"):
        weights.read_weights(tmp_path / "jit.pt")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02no weights here")
    with pytest.raises(UserError, match="damaged"):
        weights.read_weights(tmp_path / name)


def test_truncated_files(build: Callable[..., DualEncoder], path: Path) -> None:
    model = build("tiny")
    save_weights(model, path)
    torch.save(model.network.state_dict(), path.with_suffix(".pt"))
    for file in (path, path.with_suffix(".pt")):
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(UserError, match="damaged"):
            load_weights(model, file)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds list, not a table of weights"):
        weights.read_weights(tmp_path / "list.pt")


def test_missing_files_name_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(UserError, match=r"no such file: the folder has last\.safetensors"):
        weights.read_weights(tmp_path / "best.safetensors")
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    with pytest.raises(UserError, match=r"absent\.safetensors is not there: make it with `make assets`"):
        weights.read_weights("shipped", shipped="absent")
    with pytest.raises(UserError, match="no weights come with this model"):
        weights.read_weights("shipped")


def test_shipped_names_the_file_of_the_package(
    build: Callable[..., DualEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("tiny")
    save_weights(model, tmp_path / "tiny_scenes.safetensors")
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    assert tiny(checkpoint="shipped").fingerprint() == model.fingerprint()


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0:root:/root:/bin/bash\n")
    with pytest.raises(UserError, match=r"cannot be read"):
        weights.read_weights(path)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"model": "x"}, "which is no table of settings"),
        (["model"], "which is no table of settings"),
        ({"version": "99.0", "model": {}}, "was written by robustcli 99.0, later than this one"),
    ],
)
def test_a_description_that_cannot_be_read_is_a_sentence(
    model: DualEncoder, tmp_path: Path, stored: object, said: str
) -> None:
    file = tmp_path / "odd.safetensors"
    save_file(model.network.state_dict(), file, metadata={weights.METADATA_KEY: json.dumps(stored)})
    for read in (lambda: restore(file), lambda: load_weights(model, file)):
        with pytest.raises(UserError, match=said):
            read()


def _described(path: Path, **change: Any) -> Path:
    """A file of a small classifier whose description is changed."""
    model = load_classifier("small_cnn", classes=["a", "b"])
    save_weights(model, path)
    stored, tensors = weights.read_safetensors(path)
    stored["model"] |= change
    save_file(dict(tensors), path, metadata={weights.METADATA_KEY: json.dumps(stored)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [10**9, 10**9]}, "more memory than there is|is of another model"),
        ({"widths": [100_000, 100_000]}, "is of another model"),
        ({"widths": [1] * 10**6}, "expected a whole number above 0 for each of 1 to 100 stages"),
        ({"classes": 10**9}, "is of another model"),
        ({"factory": "resnet_cifar", "depth": 6 * 10**9 + 2}, "model.depth is 6000000002, more than can be meant"),
        (
            {"factory": "tiny", "layers": 10**9, "vocabulary": ["a"]},
            "model.layers is 1000000000, more than can be meant",
        ),
    ],
)
def test_a_file_that_asks_for_a_vast_network_is_refused_at_once(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        restore(_described(tmp_path / "a.safetensors", **change))


@pytest.mark.parametrize("content", [{"state_dict": {2: torch.zeros(1)}}, [torch.zeros(1)]])
def test_names_that_are_no_text_are_no_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a table of weights"):
        weights.read_weights(tmp_path / "a.pt")


def test_deep_metadata_are_a_damaged_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"robustcli": "[" * 100_000})
    with pytest.raises(UserError, match="it is damaged or no safetensors file"):
        weights.read_weights(tmp_path / "a.safetensors")
