"""Networks that give, or take, something else than a classifier's usual: told in a sentence when the model is built."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.builders.models import build_classifier
from robustcli.config.compose import compose
from robustcli.data import Digits, SceneClasses
from robustcli.models import Classifier
from robustcli.utils.errors import UserError


class Several(nn.Module):
    """One linear layer on the mean colour, and its features, in the form that ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Any:
        features = images.mean((2, 3))
        logits = self.head(features)
        forms: dict[str, Any] = {
            "plain": logits,
            "logits": {"loss": logits.sum(), "logits": logits},
            "first": (logits, features),
            "features first": (features, logits),
            "named": {"features": features, "scores": logits},
            "nested": ((features,), logits),
            "one logit": logits[:, :1],
            "flat": logits[:, 0],
        }
        return forms[self.kind]


def model(kind: str, output: int | str | None = None) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(Several(kind), classes=2, mean=[0.5] * 3, std=[0.5] * 3, output=output)


@pytest.mark.parametrize(
    ("kind", "output"),
    [("logits", None), ("first", None), ("features first", 1), ("named", "scores"), ("named", 1), ("nested", -1)],
)
def test_the_logits_are_picked_from_several_outputs(kind: str, output: int | str | None) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(kind, output)(images), model("plain")(images))


@pytest.mark.parametrize(
    ("kind", "output", "found"),
    [
        ("features first", None, r"a tuple of 0: numbers of shape \(4, 3\), 1: numbers of shape \(4, 2\)"),
        ("named", None, r"a dict of features: numbers of shape \(4, 3\), scores: numbers of shape \(4, 2\)"),
        ("one logit", None, r"numbers of shape \(4, 1\) in place of logits \(B,2\).*torch\.stack"),
        ("flat", None, r"numbers of shape \(4,\)"),
        ("first", 7, r"a tuple of"),
        ("logits", "scores", r"a dict of"),
    ],
)
def test_what_is_no_logits_is_named_with_the_key_that_picks_them(kind: str, output: Any, found: str) -> None:
    with pytest.raises(UserError, match=rf"the network Several gives {found}"):
        model(kind, output)(torch.rand(4, 3, 8, 8))


def built(*words: str) -> Classifier:
    config = compose("train-classifier", ["dataset=scene_classes", *words, "model.classes=null"]).model
    return build_classifier(config, None, SceneClasses(split="val", train=6, val=6, test=6), seed=0)


@pytest.mark.parametrize(
    "words",
    [
        ("model=timm", "model.architecture=vit_tiny_patch16_224", "model.image_size=32"),
        ("model=timm", "model.architecture=resnet18", "model.image_size=32"),
        ("model=timm", "model.architecture=resnet18", "model.mean=[0.5]", "model.std=[0.5]", "model.image_size=32"),
        ("model=torchvision", "model.architecture=vit_b_16", "model.image_size=32"),
        ("model=torchvision", "model.architecture=resnet18", "model.image_size=32"),
    ],
)
def test_size_and_channels_reach_the_libraries(words: tuple[str, ...]) -> None:
    network = built(*words)
    assert network.image_size == 32 and network.channels == (1 if "model.mean=[0.5]" in words else 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=torchvision", "model.mean=[0.5]", "model.std=[0.5]"), r"torchvision take three channels: give three"),
        (
            ("model=torchvision", "model.architecture=alexnet", "model.image_size=32"),
            r"AlexNet cannot answer .*32 x 32",
        ),
    ],
)
def test_a_network_that_cannot_take_the_images_is_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(*words)


def test_a_key_of_the_config_picks_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train-classifier", ["dataset=digits", "model=small_cnn", "+model.output=logits"]).model
    with pytest.raises(UserError, match=r"model\.output picks another"):
        build_classifier(config, None, Digits(split="test"), seed=0)
    config.output = 1.5
    with pytest.raises(UserError, match=r"model\.output is 1\.5: expected a place from 0, or a key"):
        build_classifier(config, None, Digits(split="test"), seed=0)
