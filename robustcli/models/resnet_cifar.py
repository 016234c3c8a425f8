"""``resnet_cifar``: the residual networks for 32 x 32 images (He et al. 2016, section 4.2).

Depth 20 has 0.27 million weights, depth 110 has 1.7 million.

Shapes: B batch, Y classes, W width of a stage.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.assembly import Classes, check_sizes, class_count, he_initialised, settings_and_weights
from robustcli.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from robustcli.models.weights import Checkpoint, assign
from robustcli.utils.errors import UserError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_WIDTHS = (16, 32, 64)


def resnet_cifar(
    depth: int = 20,
    *,
    classes: Classes = CIFAR10,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> Classifier:
    """A ResNet for CIFAR, with the parameter-free shortcuts of the paper (its option A).

    The weights' names are those of the common PyTorch checkpoints (``resnet20-12fca82f.th`` and its like), whose
    ``module.`` and ``state_dict`` wrappers are taken off.

    Args:
        depth: 6n + 2, such as 20, 32, 44, 56.
        classes: their names in the order of the logits, or their number.
        mean, std: that the weights were trained with; the common ones with ImageNet's.
        seed: of random weights, where none are loaded.
        checkpoint: a file of ``save_weights``, or a state dict.

    Raises:
        UserError: a depth that the paper does not have, or a checkpoint of another model.
    """
    settings: dict[str, Any] = {"depth": depth, "classes": classes, "mean": mean, "std": std}
    settings, weights = settings_and_weights(resnet_cifar, settings, checkpoint)
    if settings["depth"] < 8 or (settings["depth"] - 2) % 6:
        raise UserError(f"model.depth is {settings['depth']}: expected 6n + 2, such as 20, 32, 44 or 56")
    check_sizes(10_000, depth=settings["depth"])
    number = class_count(settings["classes"])
    network = he_initialised(lambda: _ResNet((settings["depth"] - 2) // 6, number), seed, weights)
    model = Classifier(
        network,
        classes=settings["classes"],
        mean=settings["mean"],
        std=settings["std"],
        description={"factory": "resnet_cifar", **settings},
    )
    if weights is not None:
        assign(model, weights)
    return model


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; where the grid halves, the shortcut skips pixels and pads channels."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if entering == width else 2
        self.padding = (width - entering) // 2
        self.conv1 = nn.Conv2d(entering, width, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + x)


class _ResNet(nn.Module):
    """(B,3,H,W) normalised -> (B,Y)."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(blocks, first, first)
        self.layer2 = _stage(blocks, first, second)
        self.layer3 = _stage(blocks, second, third)
        self.linear = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(blocks: int, entering: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(entering if place == 0 else width, width) for place in range(blocks)))
