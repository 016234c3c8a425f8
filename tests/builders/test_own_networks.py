"""Networks in a user's own Python file: wrapped by themselves, believed where they load weights, refused if random."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from robustcli.builders.defences import as_cleaner
from robustcli.builders.models import build_trained
from robustcli.config.compose import compose
from robustcli.data import Digits
from robustcli.models import Classifier, DualEncoder, load, save_weights, small_cnn
from robustcli.runs.provenance import file_hash, input_files
from robustcli.utils.errors import UserError

SOURCE = """
import torch
from torch import nn
from robustcli.utils.seeding import derive_seed
import own_helper


class Net(nn.Module):
    def __init__(self, width: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


def loaded() -> nn.Module:
    net = Net()
    net.load_state_dict(torch.load(own_helper.PATH, weights_only=True))
    return net


class Two(nn.Module):
    def encode_image(self, images):
        return images

    def encode_text(self, tokens):
        return tokens


class Blur(nn.Module):
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 3, 1, 1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_networks.py").write_text(SOURCE)
    (tmp_path / "own_helper.py").write_text(f"PATH = {str(tmp_path / 'net.pt')!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("own_networks", "own_helper"):
        sys.modules.pop(name, None)


@pytest.fixture
def digits() -> Digits:
    return Digits(split="test")


def judged(target: str, digits: Digits, checkpoint: str | None = None, **settings: Any) -> Classifier:
    node = OmegaConf.create({"_target_": f"own_networks.{target}", **settings})
    model = build_trained(node, checkpoint, digits, seed=0)
    assert isinstance(model, Classifier)
    return model


def test_a_bare_network_is_wrapped_with_the_classes_of_the_data(own: Path, digits: Digits) -> None:
    random = judged("Net", digits, pretrained="random")
    assert random.classes == digits.classes and random.channels == 1
    images = digits.images(torch.arange(4))
    assert torch.equal(random(images), random.network(images)), "pixels as they are"
    shifted = judged("Net", digits, pretrained="random", mean=[0.5], std=[0.25])
    torch.testing.assert_close(shifted(images), random.network((images - 0.5) / 0.25))


def test_weights_that_a_factory_loads_are_believed_and_random_ones_refused(own: Path, digits: Digits) -> None:
    network = judged("Net", digits, pretrained="random").network
    torch.save(network.state_dict(), own / "net.pt")
    assert judged("loaded", digits).fingerprint() == judged("Net", digits, str(own / "net.pt")).fingerprint()
    with pytest.raises(UserError, match=r"own_networks\.Net has random weights, which change with the seed"):
        judged("Net", digits)


def test_a_saved_network_keeps_its_normalisation(own: Path, digits: Digits) -> None:
    model = judged("Net", digits, pretrained="random", mean=[0.5], std=[0.25])
    save_weights(model, own / "w.safetensors")
    again = judged("Net", digits, str(own / "w.safetensors"))
    images = digits.images(torch.arange(4))
    assert torch.equal(again(images), model(images)) and again.description == model.description


def test_what_cannot_be_wrapped_is_a_sentence(own: Path, digits: Digits) -> None:
    with pytest.raises(
        UserError, match=r"encode_image and encode_text, whose tokenizer is not known: return robustcli"
    ):
        judged("Two", digits, pretrained="random")
    with pytest.raises(UserError, match=r"model\.colour is not an option of Net"):
        judged("Net", digits, colour=3)
    with pytest.raises(UserError, match=r"whose classes nobody names: set model\.classes"):
        load({"_target_": "own_networks.Blur"})


def test_a_checkpoint_chooses_the_model_that_it_describes(digits: Digits, tmp_path: Path) -> None:
    trained = small_cnn(digits.classes, channels=1, widths=(4,), seed=3)
    save_weights(trained, tmp_path / "checkpoints" / "last.safetensors")
    node = compose("evaluate", ["dataset=digits", "model=lenet_mnist"]).model
    for place in (tmp_path, tmp_path / "checkpoints" / "last.safetensors"):
        assert build_trained(node, str(place), digits, seed=0).fingerprint() == trained.fingerprint()


def test_a_name_with_shipped_weights_is_a_model() -> None:
    assert isinstance(load("tiny"), DualEncoder) and load("tiny").fingerprint() == load("tiny").fingerprint()
    assert load("tiny").fingerprint() != load({"name": "tiny", "vocabulary": ["a"]}).fingerprint()


def test_a_bare_network_is_a_purifier(own: Path) -> None:
    from own_networks import Blur  # type: ignore[import-not-found]

    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    cleaner = as_cleaner(Blur())
    assert torch.equal(cleaner.finish(cleaner.prepare(images), []), Blur()(images))
    with pytest.raises(UserError, match=r"purifier makes a dict: expected a robustcli\.defenses\.Cleaner"):
        as_cleaner({})


def test_own_files_and_what_they_import_beside_them_are_fingerprinted(own: Path) -> None:
    config = {"model": {"_target_": "own_networks.Net"}, "attack": {"_target_": "robustcli.attacks.PGD"}}
    names = ("own_networks.py", "own_helper.py")
    assert input_files(config) == {f"code.{name}": file_hash(own / name) for name in names}
