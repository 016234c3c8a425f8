"""The classifiers: what the wrapper does to pixels, names and nodes of configs, and files of weights."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import PGD
from robustcli.models import (
    Classifier,
    lenet,
    load,
    load_classifier,
    load_dual,
    resnet_cifar,
    save_weights,
    small_cnn,
    timm,
    torchvision,
)
from robustcli.models.assembly import settings_and_weights
from robustcli.utils.errors import UserError


def drawn(batch: int, channels: int, side: int) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


class Seen(nn.Module):
    """A network whose twelve logits are the first pixels that it is given, then zeros."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)[:, :12]
        return F.pad(pixels, (0, 12 - pixels.shape[1]))


def seen(**settings: object) -> Classifier:
    return Classifier(Seen(), **{"classes": 12, "mean": [0.0], "std": [1.0], **settings})  # type: ignore[arg-type]


def test_mean_and_std_are_taken_once_for_each_channel() -> None:
    model = seen(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125])
    logits = model(torch.full((1, 3, 2, 2), 0.6))
    assert logits[0].tolist() == pytest.approx([1.0] * 4 + [1.6] * 4 + [2.4] * 4)


def test_colours_and_grey() -> None:
    red, green, blue = (torch.eye(3)[i].view(1, 3, 1, 1) for i in range(3))
    shades = [float(seen()(image)[0, 0]) for image in (red, green, blue, red + green + blue)]
    assert shades == pytest.approx([0.299, 0.587, 0.114, 1.0])
    grey = drawn(2, 1, 2)
    model = seen(mean=[0.0] * 3, std=[1.0] * 3)
    assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="2 channels"):
        model(drawn(1, 2, 2))


def test_resizing_is_bilinear_and_only_where_the_size_differs() -> None:
    small, large = drawn(1, 1, 4), drawn(1, 1, 12)
    model = seen(image_size=8)
    assert torch.equal(model(small), F.interpolate(small, (8, 8), mode="bilinear").flatten(1)[:, :12])
    assert torch.equal(model(large), F.interpolate(large, (8, 8), mode="bilinear", antialias=True).flatten(1)[:, :12])
    assert torch.equal(seen()(small), small.flatten(1)[:, :12])


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_pixels_out_of_range_are_an_error(value: float) -> None:
    bad = torch.full((2, 1, 4, 4), 0.5)
    bad[1, 0, 3, 3] = value
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        seen()(bad)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)])
def test_what_is_no_batch_of_float_images_is_an_error(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="expected floats"):
        seen()(bad)


def test_a_checkpoint_says_what_it_was_made_with(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(resnet_cifar(14, classes=3), path)
    model = resnet_cifar(checkpoint=path)  # the default depth is not asked for
    assert model.class_count == 3 and model.description["depth"] == 14
    with pytest.raises(UserError, match=r"model\.depth is 8, but the checkpoint .* has 14"):
        resnet_cifar(8, checkpoint=path)
    with pytest.raises(UserError, match="saved from resnet_cifar, not from lenet"):
        lenet(checkpoint=path)


def test_common_state_dicts_load_and_others_are_one_error(tmp_path: Path) -> None:
    model = resnet_cifar(8, seed=3)
    state = {f"module.{name}": value for name, value in model.network.state_dict().items() if "tracked" not in name}
    torch.save({"state_dict": state, "best_prec1": 91.8}, tmp_path / "foreign.th")
    assert resnet_cifar(8, checkpoint=tmp_path / "foreign.th").fingerprint() == model.fingerprint()
    with pytest.raises(UserError, match="is of another model: it lacks layer1"):
        resnet_cifar(14, checkpoint=tmp_path / "foreign.th")
    with pytest.raises(UserError, match=r"linear\.weight \(10, 64\) in place of \(3, 64\)"):
        resnet_cifar(8, classes=3, checkpoint=tmp_path / "foreign.th")
    del state["module.bn1.running_mean"]
    torch.save(state, tmp_path / "less.th")
    with pytest.raises(UserError, match=r"it lacks bn1\.running_mean"):
        resnet_cifar(8, checkpoint=tmp_path / "less.th")


def test_a_state_dict_of_a_library_network_gives_the_number_of_its_classes_and_no_preprocessing(tmp_path: Path) -> None:
    network = torchvision("squeezenet1_1", classes=3).network
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    read = partial(torchvision, "squeezenet1_1", checkpoint=tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"it has 3 classes, so set model\.classes=3$"):
        read()
    assert read(classes=None).class_count == 3
    (said,) = read(classes=3, image_size=64).notes(64, 64)
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225 (model.mean model.std)" in said and "pixels" not in said
    assert not read(classes=3, image_size=64, mean=[0.5] * 3, std=[0.5] * 3).notes(64, 64), "nothing is left open"
    save_weights(read(classes=3), tmp_path / "ours.safetensors")
    assert not torchvision("squeezenet1_1", checkpoint=tmp_path / "ours.safetensors").notes(224, 224), "it says all"
    with pytest.raises(UserError, match=r"model\.classes is null, and no checkpoint"):
        torchvision("squeezenet1_1", classes=None)


def test_library_presets_say_size_mean_and_std() -> None:
    model = torchvision("inception_v3", classes=5)
    assert model.image_size == 299 and model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    model = timm("test_vit.r160_in1k", classes=5)
    assert model.image_size == 160 and model.mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet20_cifar", "resnet_cifar"),
        ("lenet_mnist", "lenet"),
        ("shufflenet_v2_x0_5", "torchvision"),
        ("test_resnet", "timm"),
    ],
)
def test_names(name: str, found: str) -> None:
    assert load(name).description["factory"] == found


def test_a_config_node_and_its_checkpoint(tmp_path: Path) -> None:
    node = {"_target_": "robustcli.models.small_cnn", "classes": ["a", "b"], "widths": [4], "checkpoint": "shipped"}
    model = small_cnn(("a", "b"), widths=[4], seed=9)
    save_weights(model, tmp_path / "model.safetensors")
    assert load(node, tmp_path / "model.safetensors").fingerprint() == model.fingerprint()


def test_what_needs_the_other_kind_says_so() -> None:
    with pytest.raises(UserError, match="captions need a dual encoder"):
        load_dual({"name": "lenet"})
    with pytest.raises(UserError, match="needs a classifier"):
        load_classifier({"name": "tiny", "checkpoint": "shipped"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet_cifar", "depth": 19}, "model.depth is 19: expected 6n"),
        ({"name": "lenet", "classes": 1}, "model.classes is 1"),
        ({"name": "small_cnn"}, "model.classes is null"),
        ({"name": "small_cnn", "classes": 3, "channels": 2}, "model.channels is 2"),
        ({"name": "small_cnn", "classes": 3, "widths": []}, r"model.widths is \[\]"),
        ({"name": "torchvision"}, "model.architecture is missing"),
        ({"name": "torchvision", "architecture": "resnet19"}, "did you mean 'resnet1"),
        (
            {"name": "torchvision", "architecture": "resnet18", "pretrained": "IMAGENET1K_V9"},
            "did you mean 'IMAGENET1K",
        ),
        ({"name": "timm", "architecture": "resnet19"}, "which timm does not know: did you mean"),
    ],
)
def test_mistakes(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config)


def test_downloaded_weights_bring_their_classes() -> None:
    with pytest.raises(UserError, match=r"asks for 7, but the weights of model\.pretrained know 1000"):
        torchvision("resnet18", pretrained="DEFAULT", classes=7)


def test_a_factory_without_stored_description_keeps_what_was_asked() -> None:
    assert settings_and_weights(resnet_cifar, {"depth": 20, "mean": (0.5,)}, None) == (
        {"depth": 20, "mean": [0.5]},
        None,
    )


class Gives(nn.Module):
    """A network whose output is made of the mean pixel by ``form``; three logits."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(x.mean((1, 2, 3))[:, None] * torch.tensor([[1.0, 2.0, 3.0]]))


def test_logits_stand_alone_first_in_a_tuple_or_by_their_name() -> None:
    images = drawn(2, 1, 4)
    forms: list[Callable[[Tensor], Any]] = [
        lambda z: z,
        lambda z: (z, z[:, :2]),
        lambda z: {"loss": None, "logits": z},
    ]
    found = [Classifier(Gives(form), classes=3, mean=[0.0], std=[1.0])(images) for form in forms]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda z: {"scores": z}, r"gives a dict of scores: numbers of shape \(2, 3\) in place of logits"),
        (
            lambda z: (z.repeat(1, 4), z),
            r"gives a tuple of 0: numbers of shape \(2, 12\), 1: .* in place of logits \(B,3\)",
        ),
        (lambda z: z[:, :1], r"one logit z return torch\.stack"),
        (lambda z: z[:, 0], r"shape \(2,\)"),
    ],
)
def test_another_output_is_a_sentence(form: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Classifier(Gives(form), classes=3, mean=[0.0], std=[1.0])(drawn(2, 1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_attacked_too(dtype: torch.dtype) -> None:
    whole = small_cnn(3, widths=(4,), seed=1)
    other = copy.deepcopy(whole)
    other.network.to(dtype)
    images = drawn(6, 1, 8)
    labels = whole(images).argmax(1)
    assert other(images).dtype == torch.float32
    torch.testing.assert_close(other(images), whole(images), rtol=0.05, atol=0.05)
    attacked = PGD(eps=0.3, steps=3)(other, images, labels)
    assert attacked.images.dtype == torch.float32 and float(attacked.norm.max()) <= 0.3 + 1e-6
