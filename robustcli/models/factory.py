"""From a name, a config node or a file to a model."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from robustcli.errors import UserError
from robustcli.models.clip import nearest, open_clip
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.tiny import tiny
from robustcli.models.weights import read_weights

_Factory = Callable[..., DualEncoder]
_FACTORIES: Mapping[str, _Factory] = {"tiny": tiny, "open_clip": open_clip}


def load(
    config_or_name: str | Mapping[str, Any],
    checkpoint: str | Path | None = None,
    *,
    vocabulary: Sequence[str] | None = None,
) -> DualEncoder:
    """The model that a name or a config node asks for.

    Args:
        config_or_name: ``tiny``, an architecture such as ``ViT-B-32``, or a mapping: ``_target_`` (dotted path of a
            factory) or ``name``, the arguments of the factory, and ``trainable``: ``image``, ``text`` or ``both``.
        checkpoint: weights to start from, in place of the config's own; ``shipped`` or a path.
        vocabulary: the words of the data set, for a model that learns its own and gets no checkpoint.

    Raises:
        UserError: an unknown name, key, tag or file, each with the nearest valid one.
    """
    settings: dict[str, Any] = {"name": config_or_name} if isinstance(config_or_name, str) else {**config_or_name}
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
                f"model.{key} is not an option of {factory.__name__} ({', '.join(known)})" + nearest(key, list(known))
            )
    if factory is open_clip and "architecture" not in settings:
        raise UserError("model.architecture is missing: give a name such as ViT-B-16")
    model = factory(**settings)
    model.set_trainable(trainable)
    return model


def restore(checkpoint: str | Path) -> DualEncoder:
    """The model of a file that ``save_weights`` wrote, tokenizer and sizes included, from the file alone."""
    weights = read_weights(checkpoint)
    match weights.description.get("factory"):
        case "tiny":
            return tiny(checkpoint=checkpoint)
        case "open_clip":
            return open_clip(weights.description["architecture"], checkpoint=checkpoint)
    raise UserError(
        f"checkpoint {weights.path} does not say which model it is of: give its architecture with model=open_clip"
    )


def _factory(settings: dict[str, Any]) -> _Factory:
    """Takes ``_target_`` or ``name`` out of the settings; a name that is no factory is an architecture of open_clip."""
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
    if name in _FACTORIES:
        return _FACTORIES[name]
    if name is not None:
        settings["architecture"] = name
    return open_clip
