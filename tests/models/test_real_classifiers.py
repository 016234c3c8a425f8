"""The layouts against weights that others trained, on images that are not free enough to lie in the repository."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from robustcli.builders.data import build_classes
from robustcli.config.compose import compose
from robustcli.data import ClassArrays, ClassFolders, ImageClassData
from robustcli.models import Classifier, load
from robustcli.models.resnet_cifar import CIFAR10

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images and weights are not at {DATA}")


@torch.no_grad()
def accuracy(model: Classifier, data: ImageClassData) -> float:
    right = [
        (model(data.images(rows)).argmax(1) == data.labels[rows]).sum()
        for rows in torch.split(torch.arange(len(data)), 250)
    ]
    return int(torch.stack(right).sum()) / len(data)


@pytest.fixture(scope="module")
def cifar() -> ClassFolders:
    return ClassFolders(DATA / "classification" / "cifar10", split="test", classes=CIFAR10, image_size=32, limit=1000)


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [("resnet20_cifar", "resnet20-12fca82f.th", 0.810), ("resnet32_cifar", "resnet32-d509ac18.th", 0.825)],
)
def test_cifar_resnets_score_what_they_are_known_for(
    cifar: ClassFolders, name: str, file: str, expected: float
) -> None:
    """On 1,000 of the 5,000 JPEG copies; without mean and std, or with a wrong shortcut, below 70 %."""
    assert len(cifar) == 1000 and torch.bincount(cifar.labels).min() > 70
    model = load(name, DATA / "weights" / "cifar10_resnet_akamaster" / file)
    assert accuracy(model, cifar) == pytest.approx(expected, abs=0.025)


def test_lenet_scores_what_it_is_known_for() -> None:
    file = DATA / "classification" / "mnist" / "mnist_t10k_dev.npz"
    data = ClassArrays(file, split="test", holds="test", classes=10, ids="index", limit=2000)
    model = load("lenet_mnist", DATA / "weights" / "mnist_csinva" / "lenet_epoch=12_test_acc=0.991.pth")
    assert data.images(torch.arange(1)).shape == (1, 1, 28, 28)
    assert accuracy(model, data) == pytest.approx(0.991, abs=0.006)


def test_the_preset_of_celebahq_gender_reads_the_sample() -> None:
    config = compose("evaluate", ["dataset=celebahq_gender", f"dataset.root={DATA}/classification/celebahq_gender"])
    data = build_classes(OmegaConf.merge(config.dataset, {"limit": 24}), "test")
    images = data.images(torch.arange(24))
    assert data.name == "celebahq_gender" and data.classes == ("female", "male") and images.shape == (24, 3, 256, 256)
    assert all(name.startswith(data.classes[label]) for name, label in zip(data.image_ids, data.labels, strict=True))
