"""``torchvision`` and ``timm``: the classifiers of both libraries, with their weights or a local checkpoint.

Shapes: Y classes.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from robustcli.models.assembly import (
    Classes,
    class_count,
    library_errors,
    seeded_constructors,
    settings_and_weights,
    tag_or_file,
)
from robustcli.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from robustcli.models.weights import Checkpoint, Weights, assign
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_SIZE = 224


def torchvision(
    architecture: str,
    *,
    pretrained: str | None = None,
    checkpoint: Checkpoint | None = None,
    classes: Classes | None = 1000,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier of torchvision.

    Args:
        architecture: a name such as ``resnet50``.
        pretrained: a tag such as ``IMAGENET1K_V2`` or ``DEFAULT`` (its weights are downloaded), or the path of a
            checkpoint.
        checkpoint: a local file: safetensors, or a state dict. With a tag beside it, the tag says only what size, mean
            and std the weights were trained with, and nothing is downloaded.
        classes: their names in the order of the logits, or their number; None: that of the checkpoint.
        image_size, mean, std: if not those of the tag, or of the architecture's default weights.
        seed: of random weights, where none are loaded; the global generator is left alone.

    Raises:
        UserError: an unknown name or tag, no network where one is needed, or a checkpoint of another model.
    """
    library = importlib.import_module("torchvision.models")
    pretrained, checkpoint = tag_or_file(pretrained, checkpoint)
    settings: dict[str, Any] = {
        "architecture": architecture,
        "classes": classes,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    settings, weights = settings_and_weights(torchvision, settings, checkpoint)
    settings["classes"] = _known_classes(settings["classes"], weights)
    known = library.list_models(module=library)
    if architecture not in known:
        raise UserError(
            f"model.architecture is {architecture!r}, which torchvision does not know"
            + did_you_mean(architecture, known)
        )
    tag = weights_tag(library, architecture, pretrained)
    preset = (tag or library.get_model_weights(architecture).DEFAULT).transforms()
    downloaded = tag if weights is None else None
    assumed = _settle(settings, _side(preset.crop_size), preset.mean, preset.std)
    if downloaded is not None:
        settings["classes"] = _own_names(downloaded.meta["categories"], settings["classes"])
    number = None if downloaded is not None else class_count(settings["classes"])
    if len(settings["mean"]) != 3:
        raise UserError(
            f"model.mean is {list(settings['mean'])}, but the networks of torchvision take three channels: give three "
            "numbers, which images of one channel are repeated for, or choose model=timm."
        )
    with library_errors(architecture), seeded_constructors(seed):
        network = _of_size(
            partial(
                library.get_model,
                architecture,
                weights=downloaded,
                **({} if number is None else {"num_classes": number}),
            ),
            "image_size",
            settings["image_size"],
        )
    return _wrapped(network, {"factory": "torchvision", **settings}, weights, assumed if tag is None else [])


def timm(
    architecture: str,
    *,
    pretrained: bool = False,
    checkpoint: Checkpoint | None = None,
    classes: Classes | None = 1000,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier of timm.

    Args:
        architecture: a name such as ``resnet50``, or with its tag ``resnet50.a1_in1k``; or ``local-dir:FOLDER``, or
            ``hf-hub:NAME``.
        pretrained: download the weights of the tag.
        checkpoint: a local file: safetensors, or a state dict; nothing is downloaded then.
        classes: their names in the order of the logits, or their number; None: that of the checkpoint.
        image_size, mean, std: if not those of timm's data configuration.
        seed: of random weights, where none are loaded; the global generator is left alone.

    Raises:
        UserError: an unknown name, no network where one is needed, or a checkpoint of another model.
    """
    library = importlib.import_module("timm")
    settings: dict[str, Any] = {
        "architecture": architecture,
        "classes": classes,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    settings, weights = settings_and_weights(timm, settings, checkpoint)
    settings["classes"] = _known_classes(settings["classes"], weights)
    if ":" not in architecture and not library.is_model(architecture):
        raise UserError(
            f"model.architecture is {architecture!r}, which timm does not know"
            + did_you_mean(architecture, library.list_models())
        )
    channels = {} if settings["mean"] is None else {"in_chans": len(settings["mean"])}
    with library_errors(architecture), seeded_constructors(seed):
        network = _of_size(
            partial(
                library.create_model,
                architecture,
                pretrained=pretrained and weights is None,
                num_classes=class_count(settings["classes"]),
                **channels,
            ),
            "img_size",
            settings["image_size"],
        )
    found = importlib.import_module("timm.data").resolve_model_data_config(network)
    assumed = _settle(settings, _side(found["input_size"][-2:]), found["mean"], found["std"])
    tagged = "." in architecture or ":" in architecture
    return _wrapped(network, {"factory": "timm", **settings}, weights, [] if tagged else assumed)


def _of_size(build: Callable[..., nn.Module], key: str, size: int | None) -> nn.Module:
    """The network for images of ``size`` pixels a side; the argument ``key`` is left to those that are made for one."""
    if size is None:
        return build()
    try:
        return build(**{key: size})
    except TypeError as error:
        if key not in str(error):
            raise
        return build()


def weights_tag(library: ModuleType, architecture: str, pretrained: str | None) -> Any:
    """The weights that torchvision calls ``pretrained``, for its ``architecture``; `UserError` for another name."""
    if pretrained is None:
        return None
    tags = library.get_model_weights(architecture)
    if pretrained not in tags.__members__:
        names = list(tags.__members__)
        raise UserError(
            f"model.pretrained is {pretrained!r}, neither a file nor a tag of {architecture} ({', '.join(names)})"
            + did_you_mean(pretrained, names)
        )
    return tags[pretrained]


def _side(size: int | Sequence[int]) -> int:
    sides = [size] if isinstance(size, int) else list(size)
    return int(sides[0]) if len(set(sides)) == 1 else _SIZE


def _settle(settings: dict[str, Any], size: int, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Fill in image size, mean and std where neither the caller nor a checkpoint gives them; the keys of those."""
    usual = {"image_size": size, "mean": list(mean or IMAGENET_MEAN), "std": list(std or IMAGENET_STD)}
    open_keys = [key for key in usual if settings[key] is None]
    settings.update({key: usual[key] for key in open_keys})
    return open_keys


def _known_classes(classes: Classes | None, weights: Weights | None) -> Classes:
    """``classes``, or the rows of the last tensor of the weights, which in both libraries is that of the logits; a
    wrong guess does not fit and is told.
    """
    if classes is not None:
        return classes
    if weights is None:
        raise UserError("model.classes is null, and no checkpoint or data set has them: give their number.")
    return next((len(each) for each in reversed(list(weights.state.values())) if each.ndim), 1000)


def _own_names(names: Sequence[str], asked: Classes) -> list[str]:
    """The names that come with downloaded weights; another number of classes would need another last layer."""
    number = asked if isinstance(asked, int) else len(asked)
    if number != len(names):
        raise UserError(
            f"model.classes asks for {number}, but the weights of model.pretrained know {len(names)}: leave "
            "model.classes out, or train from new weights with model.pretrained=null"
        )
    return list(names) if isinstance(asked, int) else list(asked)


def _wrapped(
    network: nn.Module, description: Mapping[str, Any], weights: Weights | None, assumed: Sequence[str]
) -> Classifier:
    """The network with its weights; ``assumed`` are keys that no file or tag says and the architecture has a usual
    value for. A wrong one costs accuracy in silence, so that it is told.
    """
    model = Classifier(
        network,
        classes=description["classes"],
        mean=description["mean"],
        std=description["std"],
        image_size=description["image_size"],
        description=description,
    )
    if weights is not None:
        told = [_OPEN.format(weights.path, _values(description, assumed), " ".join(f"model.{key}" for key in assumed))]
        assign(model, replace(weights, remarks=[*weights.remarks, *(told if assumed else [])]))
    return model


_OPEN = "{} does not say how its images were prepared; taken is what is usual for the architecture: {} ({})."


def _values(description: Mapping[str, Any], keys: Sequence[str]) -> str:
    said = {
        "image_size": f"{description['image_size']} pixels a side",
        "mean": f"mean {', '.join(f'{each:.3g}' for each in description['mean'])}",
        "std": f"std {', '.join(f'{each:.3g}' for each in description['std'])}",
    }
    return "; ".join(said[key] for key in keys)
