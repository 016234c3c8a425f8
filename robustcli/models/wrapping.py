"""Networks of a user's own, wrapped as classifiers by themselves: pixels in [0,1] in, logits out.

Shapes: C channels, Y classes.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from robustcli.models.classifier import Classifier
from robustcli.models.registry import Factory, row_of
from robustcli.utils.errors import UserError

_SETTINGS = ("classes", "mean", "std", "image_size")


def wrapping(factory: Factory, settings: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the wrapper of what ``factory`` makes, should it be a bare network; empty for factories of ours.

    Args:
        settings: of the config, which may name ``classes``, ``mean``, ``std`` and ``image_size``.
        offered: of the data set, whose classes count where the config names none.
    """
    if row_of(factory) is not None:
        return {}
    chosen = {key: settings.get(key) for key in _SETTINGS}
    return chosen | {"classes": offered.get("classes") if chosen["classes"] is None else chosen["classes"]}


def wrapped(network: nn.Module, name: str, settings: Mapping[str, Any], wrapper: Mapping[str, Any]) -> Classifier:
    """The classifier of a bare network: without a mean and a std it takes pixels in [0,1] as they are.

    Raises:
        UserError: a dual encoder, whose tokenizer nobody knows; or neither the config nor the data name the classes.
    """
    if hasattr(network, "encode_image") and hasattr(network, "encode_text"):
        raise UserError(
            f"model._target_ {name} makes a {type(network).__name__} with encode_image and encode_text, whose "
            "tokenizer is not known: return robustcli.models.DualEncoder(network, tokenizer, image_size=..., mean=..., "
            "std=...)."
        )
    classes = wrapper["classes"] or settings.get("classes") or settings.get("num_classes")
    if classes is None:
        raise UserError(
            f"model._target_ {name} makes a bare network, whose classes nobody names: set model.classes to their names "
            "in the order of the logits, or to their number."
        )
    channels = _channels(network)
    settings = {
        "classes": classes,
        "mean": wrapper["mean"] or [0.0] * channels,
        "std": wrapper["std"] or [1.0] * channels,
        "image_size": wrapper["image_size"],
    }
    described = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return Classifier(network, **settings, description=described)


def _channels(network: nn.Module) -> int:
    """C of the first convolution; 3 for a network that begins otherwise."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels
