"""From a name, a config node or a file to a model."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from robustcli.models.classifier import Classifier
from robustcli.models.clip import open_clip
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.lenet import lenet
from robustcli.models.mlp_head import mlp_head
from robustcli.models.resnet_cifar import resnet_cifar
from robustcli.models.small_cnn import small_cnn
from robustcli.models.tiny import tiny
from robustcli.models.weights import SUFFIXES, Model, read_weights
from robustcli.models.zoo import timm, torchvision
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_Factory = Callable[..., Model]
_FACTORIES: Mapping[str, _Factory] = {
    "lenet": lenet,
    "mlp_head": mlp_head,
    "open_clip": open_clip,
    "resnet_cifar": resnet_cifar,
    "small_cnn": small_cnn,
    "timm": timm,
    "tiny": tiny,
    "torchvision": torchvision,
}
_DUAL = (open_clip, tiny)  # known without building one, which may need a vocabulary or a download
# Names of conf/model that say more than a factory.
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cars_resnext50": {"name": "mlp_head", "architecture": "resnext50_32x4d", "image_size": 128},
    "celeba64_vgg11_bn": {"name": "mlp_head", "architecture": "vgg11_bn", "image_size": 64},
    "celebahq_gender_resnet50": {"name": "mlp_head", "architecture": "resnet50", "image_size": 256},
    "digits": {"name": "small_cnn", "shipped": "tiny_digits", "checkpoint": "shipped"},
    "lenet_mnist": {"name": "lenet"},
    "resnet20_cifar": {"name": "resnet_cifar", "depth": 20},
    "resnet32_cifar": {"name": "resnet_cifar", "depth": 32},
    "scene_classes": {"name": "small_cnn", "shipped": "tiny_scene_classes", "checkpoint": "shipped"},
}
_HUBS = ("hf-hub:", "local-dir:")


def load(
    name_or_config: str | Mapping[str, Any],
    checkpoint: str | Path | None = None,
    *,
    vocabulary: Sequence[str] | None = None,
) -> Model:
    """The model that a name, a config node or a file asks for: a dual encoder, or a classifier in eval mode.

    Args:
        name_or_config: a name; the path of a file that ``save_weights`` wrote; or a mapping: ``_target_`` (dotted path
            of a factory) or ``name``, the arguments of the factory, and for a dual encoder ``trainable``: ``image``,
            ``text`` or ``both``. Names are ``tiny``, ``digits``, ``scene_classes``, ``resnet20_cifar``,
            ``resnet32_cifar``, ``lenet_mnist``, the factories, and the architectures of torchvision (``resnet50``), of
            open_clip (``ViT-B-32``) and of timm, looked up in this order.
        checkpoint: weights to start from, in place of the config's own; ``shipped`` or a path.
        vocabulary: the words of the data set, for a model that learns its own and gets no checkpoint.

    Raises:
        UserError: an unknown name, key, tag or file, each with the nearest valid one.
    """
    if isinstance(name_or_config, str) and name_or_config.endswith(SUFFIXES) and checkpoint is None:
        return restore(name_or_config)
    settings: dict[str, Any] = {"name": name_or_config} if isinstance(name_or_config, str) else {**name_or_config}
    trainable = settings.pop("trainable", "both")
    if trainable not in ("image", "text", "both"):
        raise UserError(f"model.trainable is {trainable!r}: expected image, text or both")
    factory = _factory(settings)
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    known = signature(factory).parameters
    if vocabulary is not None and "vocabulary" in known:
        settings.setdefault("vocabulary", vocabulary)
    for key in settings:
        if key not in known:
            raise UserError(
                f"model.{key} is not an option of {factory.__name__} ({', '.join(known)})"
                + did_you_mean(key, list(known))
            )
    if "architecture" in known and settings.get("architecture") is None:
        raise UserError("model.architecture is missing: give a name such as ViT-B-16 or resnet50")
    model = factory(**settings)
    if isinstance(model, DualEncoder):
        model.set_trainable(trainable)
    return model


def load_dual(config: str | Mapping[str, Any], *, vocabulary: Sequence[str] | None = None) -> DualEncoder:
    """As `load`, for what needs images and captions in one space; a `UserError` where the model is a classifier."""
    model = load(config, vocabulary=vocabulary)
    if isinstance(model, DualEncoder):
        return model
    raise UserError(
        f"the model {model.description.get('factory')} is a classifier, but captions need a dual encoder: choose "
        "model=tiny or model=open_clip, or a data set of classes such as dataset=digits."
    )


def load_classifier(config: Mapping[str, Any]) -> Classifier:
    """As `load`, for what needs logits; a `UserError` where the model is a dual encoder."""
    factory = _factory(dict(config))
    model = None if factory in _DUAL else load(config)
    if isinstance(model, Classifier):
        return model
    raise UserError(
        f"the model {factory.__name__} is a dual encoder, but a data set of classes needs a classifier: choose "
        "model=digits, model=resnet20_cifar or model=torchvision, or a data set with captions."
    )


def restore(checkpoint: str | Path) -> Model:
    """The model of a file that ``save_weights`` wrote, tokenizer, classes and sizes included, from the file alone."""
    weights = read_weights(checkpoint)
    description = dict(weights.description)
    factory = description.pop("factory", None)
    if factory not in _FACTORIES:
        raise UserError(
            f"checkpoint {weights.path} does not say which model it is of: give its architecture with model=open_clip"
        )
    if factory == "tiny":
        return tiny(checkpoint=checkpoint)
    if factory == "open_clip":
        return open_clip(description["architecture"], checkpoint=checkpoint)
    return _FACTORIES[factory](**description, checkpoint=checkpoint)


def _factory(settings: dict[str, Any]) -> _Factory:
    """Takes ``_target_`` or ``name`` out of the settings; a name that is no factory is an architecture."""
    target, name = settings.pop("_target_", None), settings.pop("name", None)
    if target is not None:
        module, _, attribute = str(target).rpartition(".")
        try:
            factory: _Factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"model._target_ is {target!r}, which cannot be imported ({error}): expected robustcli.models.tiny"
            ) from error
        return factory
    if name in _PRESETS:
        preset = dict(_PRESETS[name])
        name = preset.pop("name")
        for key, value in preset.items():
            settings.setdefault(key, value)
    if name in _FACTORIES:
        return _FACTORIES[name]
    if name is None:
        return open_clip
    settings["architecture"] = name
    return _library_of(name)


def _library_of(name: str) -> _Factory:
    """The factory that knows an architecture; libraries are imported in this order, and only as far as it takes."""
    if name.startswith(_HUBS):
        return open_clip
    vision = importlib.import_module("torchvision.models")
    known = vision.list_models(module=vision)
    if name in known:
        return torchvision
    clips = importlib.import_module("open_clip").list_models()
    if name in clips:
        return open_clip
    library = importlib.import_module("timm")
    if library.is_model(name):
        return timm
    names = [*_PRESETS, *_FACTORIES, *known, *clips, *library.list_models()]
    raise UserError(
        f"model is {name!r}, which neither robustcli, torchvision, open_clip nor timm knows" + did_you_mean(name, names)
    )
