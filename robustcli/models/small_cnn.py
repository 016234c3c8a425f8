"""``small_cnn``: a convolutional network of some ten thousand weights for the embedded sets.

Shapes: B batch, C channels, W width, Y classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.assembly import Classes, class_count, he_initialised, settings_and_weights
from robustcli.models.classifier import Classifier
from robustcli.models.weights import Checkpoint, assign
from robustcli.utils.errors import UserError


def small_cnn(
    classes: Classes | None = None,
    *,
    channels: int = 1,
    widths: Sequence[int] = (16, 32, 64),
    seed: int = 0,
    shipped: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Classifier:
    """Convolutions in stages, the grid halved between them, then the mean and the maximum of each channel.

    It takes images of any size; a purely convolutional network of global pools does not care where a shape stands.

    Args:
        classes: their names in the order of the logits, or their number; None: those of the checkpoint.
        channels: C, 1 or 3.
        widths: W of each stage; a stage has two convolutions.
        seed: of random weights, where none are loaded.
        shipped: name of the package's own file that ``checkpoint="shipped"`` stands for.
        checkpoint: a file of ``save_weights``, or ``shipped``. Classes and sizes are then the file's.

    Raises:
        UserError: a size that is not possible, no classes, or a checkpoint of another model.
    """
    settings, weights = settings_and_weights(
        small_cnn, {"classes": classes, "channels": channels, "widths": list(widths)}, checkpoint, shipped=shipped
    )
    _check(settings)
    number = class_count(settings["classes"])
    network = he_initialised(lambda: _SmallCNN(settings["channels"], settings["widths"], number), seed, weights)
    model = Classifier(
        network,
        classes=settings["classes"],
        mean=[0.5] * settings["channels"],
        std=[0.25] * settings["channels"],
        description={"factory": "small_cnn", **settings},
    )
    if weights is not None:
        assign(model, weights)
    return model


def _check(settings: dict[str, Any]) -> None:
    if settings["classes"] is None:
        raise UserError("model.classes is null: give the names of the classes, or a checkpoint that holds them")
    if settings["channels"] not in (1, 3):
        raise UserError(f"model.channels is {settings['channels']}: expected 1 or 3")
    if not settings["widths"] or min(settings["widths"]) < 1 or len(settings["widths"]) > 100:
        raise UserError(
            f"model.widths is {settings['widths']}: expected a whole number above 0 for each of 1 to 100 stages"
        )


class _SmallCNN(nn.Module):
    """(B,C,H,W) normalised -> (B,Y)."""

    def __init__(self, channels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            layers += [_layer(channels, width, 1 if stage == 0 else 2), _layer(width, width, 1)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        logits: Tensor = self.head(torch.cat([x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)], dim=1))
        return logits


def _layer(entering: int, width: int, stride: int) -> nn.Sequential:
    # Batch normalisation keeps its moments of clean batches, which an attack in eval mode then reads.
    return nn.Sequential(nn.Conv2d(entering, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
