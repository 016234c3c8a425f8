"""``mlp_head``: torchvision's networks with the head of the purification paper (Serez et al. 2025), and its files.

Its code writes ``{"epoch", "global_step", "state_dict"}`` with names ``model.<torchvision's>``; the head stands at
``model.fc.{0,1,3}`` of a ResNet and at ``model.classifier.{0,1,3}`` of a VGG.

Shapes: D features, Y classes.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.models.assembly import Classes, class_count, library_errors, seeded_constructors, settings_and_weights
from robustcli.models.classifier import Classifier
from robustcli.models.weights import Checkpoint, Weights, assign
from robustcli.models.zoo import weights_tag
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic
from robustcli.utils.suggest import did_you_mean

_HALF = (0.5, 0.5, 0.5)
_HEADS = ("fc", "classifier")  # torchvision's names of the last part, in ResNets and in VGGs
_PREFIX = "model."
_LAST = "3.weight"  # (Y,D)


def mlp_head(
    architecture: str,
    *,
    classes: Classes | None = None,
    image_size: int | None = None,
    pretrained: str | None = None,
    checkpoint: Checkpoint | None = None,
    mean: Sequence[float] = _HALF,
    std: Sequence[float] = _HALF,
    seed: int = 0,
) -> Classifier:
    """A network of torchvision whose last part is Linear(D,D) - BatchNorm - ReLU - Linear(D,Y), the first without bias.

    D is the width of the input of the part that is replaced: 2,048 of a ResNet-50, 25,088 of a VGG, whose head then
    has 629 million weights (2.5 GB).

    Args:
        architecture: a name such as ``resnet50``, ``resnext50_32x4d`` or ``vgg11_bn``.
        classes: their names in the order of the logits, or their number; None: the number that the checkpoint has.
        image_size: side in pixels that images are resized to; None: as they come.
        pretrained: a tag such as ``DEFAULT``, whose weights, downloaded, the body starts from; the head is new.
        checkpoint: a file of ``save_weights``, or of the paper's code, or a state dict; nothing is downloaded then.
        mean, std: that the weights were trained with.
        seed: of random weights, where none are loaded; the global generator is left alone.

    Raises:
        UserError: an unknown name, no network where one is needed, or a checkpoint of another model, head or number of
            classes.
    """
    settings: dict[str, Any] = {
        "architecture": architecture,
        "classes": classes,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    settings, weights = settings_and_weights(mlp_head, settings, checkpoint)
    if weights is not None:
        weights = replace(weights, state={name.removeprefix(_PREFIX): value for name, value in weights.state.items()})
        settings["classes"] = _checked(weights, settings["classes"])
    if settings["classes"] is None:
        raise UserError("model.classes is null and there is no checkpoint to count them: give their names or number.")
    number = class_count(settings["classes"])
    with torch.device("cpu" if weights is None else "meta"), seeded_constructors(seed):
        network = build_network(architecture, number, pretrained=None if weights else pretrained)
    model = Classifier(
        network if weights is None else _emptied(network),
        classes=settings["classes"],
        mean=settings["mean"],
        std=settings["std"],
        image_size=settings["image_size"],
        description={"factory": "mlp_head", **settings},
    )
    if weights is not None:
        assign(model, weights)
    return model


def build_network(architecture: str, classes: int, *, pretrained: str | None = None) -> nn.Module:
    """The bare network, on the default device; `UserError` for an architecture without a part to replace."""
    library = importlib.import_module("torchvision.models")
    known = library.list_models(module=library)
    if architecture not in known:
        raise UserError(
            f"model.architecture is {architecture!r}, which torchvision does not know"
            + did_you_mean(architecture, known)
        )
    with library_errors(architecture):
        network: nn.Module = library.get_model(architecture, weights=weights_tag(library, architecture, pretrained))
    for name in _HEADS:
        linear = [part for part in getattr(network, name, nn.Identity()).modules() if isinstance(part, nn.Linear)]
        if linear:
            setattr(network, name, _head(linear[0].in_features, classes))
            return network
    raise UserError(
        f"model.architecture is {architecture!r}, which ends neither in fc nor in classifier: choose a ResNet, a "
        "ResNeXt or a VGG, such as resnet50."
    )


def save_published(model: Classifier, path: str | Path, *, epoch: int = 0, global_step: int = 0) -> None:
    """Write the weights as the paper's code does, for use there; ours are written by ``save_weights``.

    Args:
        model: of `mlp_head`.
        epoch, global_step: that were trained, for the file's own record.
    """
    state = {
        f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()
    }
    with atomic(Path(path)) as temporary:
        torch.save({"epoch": epoch, "global_step": global_step, "state_dict": state}, temporary)


def _head(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, classes)
    )


def _emptied(network: nn.Module) -> nn.Module:
    """The network in memory with uninitialised weights, for a checkpoint that brings every weight."""
    network = network.to_empty(device="cpu")
    for buffer in network.buffers():  # a file may lack counters, which then stay
        buffer.zero_()
    return network


def _checked(weights: Weights, classes: Classes | None) -> Classes:
    """The classes asked for, or their number in the file, where its head is the paper's."""
    heads = [name for name in _HEADS if f"{name}.0.weight" in weights.state and f"{name}.{_LAST}" in weights.state]
    if len(heads) != 1 or f"{heads[0]}.1.running_mean" not in weights.state:
        raise UserError(
            f"checkpoint {weights.path} does not have the head Linear-BatchNorm-ReLU-Linear at fc or classifier: for "
            "torchvision's own last layer give model=torchvision."
        )
    stored, asked = len(weights.state[f"{heads[0]}.{_LAST}"]), None if classes is None else class_count(classes)
    if asked is not None and asked != stored:
        raise UserError(
            f"checkpoint {weights.path} is of {stored} classes, but model.classes asks for {asked}: give the class "
            "list that it was trained with."
        )
    return stored if classes is None else classes
