"""The purification paper's classifiers: names and shapes of their files, and what is said of others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.models import Classifier, load, mlp_head, save_published, save_weights, torchvision
from robustcli.models.mlp_head import build_network
from robustcli.models.names import preset as settings_of
from robustcli.utils.errors import UserError


@pytest.fixture(scope="module")
def model() -> Classifier:
    return mlp_head("resnet18", classes=3, seed=4)


@pytest.fixture(scope="module")
def published(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "last.pt"
    save_published(model, path, epoch=7, global_step=900)
    return path


@pytest.mark.parametrize(
    ("preset", "head", "features", "classes", "body"),
    [
        ("celebahq_gender_resnet50", "fc", 2048, 2, ("layer4.2.conv3.weight", (2048, 512, 1, 1))),
        ("cars_resnext50", "fc", 2048, 4, ("layer1.0.conv2.weight", (128, 4, 3, 3))),
        ("celeba64_vgg11_bn", "classifier", 25088, 100, ("features.25.weight", (512, 512, 3, 3))),
    ],
)
def test_the_presets_have_the_published_names_and_shapes(
    preset: str, head: str, features: int, classes: int, body: tuple[str, tuple[int, ...]]
) -> None:
    config = settings_of(preset)
    with torch.device("meta"):
        state = build_network(config["architecture"], classes).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith(f"{head}.")} == {
        f"{head}.0.weight": (features, features),
        **{f"{head}.1.{part}": (features,) for part in ("weight", "bias", "running_mean", "running_var")},
        f"{head}.1.num_batches_tracked": (),
        f"{head}.3.weight": (classes, features),
        f"{head}.3.bias": (classes,),
    }
    assert shapes[body[0]] == body[1]
    assert sum(value.numel() for value in state.values()) > 6e8 or head == "fc"
    assert config["mean"] == config["std"] == [0.5] * 3


def test_the_published_file_has_its_layout(model: Classifier, published: Path) -> None:
    content = torch.load(published, weights_only=True)
    assert set(content) == {"epoch", "global_step", "state_dict"}
    assert (content["epoch"], content["global_step"]) == (7, 900)
    own = model.network.state_dict()
    assert list(content["state_dict"]) == [f"model.{name}" for name in own]
    assert {"model.conv1.weight", "model.fc.0.weight", "model.fc.1.running_var", "model.fc.3.bias"} <= set(
        content["state_dict"]
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_layouts_come_back_to_the_bit(model: Classifier, published: Path, prefix: str, tmp_path: Path) -> None:
    content = torch.load(published, weights_only=True)
    content["state_dict"] = {f"{prefix}{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "published.pt")
    save_weights(model, tmp_path / "own.safetensors")
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for file in ("published.pt", "own.safetensors"):
        again = mlp_head("resnet18", checkpoint=tmp_path / file)
        assert again.class_count == 3, "counted in the file"
        assert again.fingerprint() == model.fingerprint() and torch.equal(again(images), model(images))
        assert not any(value.is_meta for value in again.state_dict().values())


def test_it_is_normalised_by_a_half_and_resized() -> None:
    model = mlp_head("resnet18", classes=2, image_size=32)
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]))
    assert seen[0].shape == (2, 3, 32, 32) and seen[0].flatten(1).unique(dim=1).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet18", "classes": ["a", "b"]}, "is of 3 classes, but model.classes asks for 2: give"),
        ({"architecture": "resnet34"}, "is of another model: it lacks layer"),
        ({"architecture": "vgg11_bn"}, "is of another model: it lacks features.0.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_sentence(published: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mlp_head(**settings, checkpoint=published)
    assert "\n" not in str(caught.value)


def test_another_head_is_one_sentence(tmp_path: Path) -> None:
    state = torchvision("resnet18", classes=3, image_size=32).network.state_dict()
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"does not have the head Linear-BatchNorm-ReLU-Linear .* model=torchvision"):
        mlp_head("resnet18", checkpoint=tmp_path / "plain.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet5"}, "which torchvision does not know"),
        ({"architecture": "squeezenet1_1"}, "which ends neither in fc nor in classifier"),
        ({"architecture": "resnet18", "pretrained": "IMAGENET"}, "neither a file nor a tag of resnet18"),
        ({"architecture": "resnet18", "classes": 1}, "expected at least two names"),
        ({"architecture": "resnet18", "classes": None}, "model.classes is null and there is no checkpoint"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mlp_head(**{"classes": 3} | settings)


def test_the_presets_have_names() -> None:
    with pytest.raises(UserError, match=r"model\.classes is null and there is no checkpoint"):
        load("celebahq_gender_resnet50")
