"""``open_clip``: any architecture of the open_clip library, with one of its pretrained tags or a local checkpoint."""

import importlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustcli.models.architectures import architectures
from robustcli.models.assembly import library_errors, seeded_constructors, tag_or_file
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.layouts import fitted
from robustcli.models.weights import (
    Checkpoint,
    OtherModel,
    Weights,
    assign,
    located,
    read_weights,
    with_image_tower,
)
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_SCHEMES = ("hf-hub:", "local-dir:")  # open_clip's names for a model that brings its own configuration


def open_clip(
    architecture: str,
    *,
    pretrained: str | None = None,
    checkpoint: Checkpoint | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> DualEncoder:
    """A dual encoder of the open_clip library.

    Args:
        architecture: a name such as ``ViT-B-16``; or ``local-dir:FOLDER``, which has an ``open_clip_config.json``;
            or ``hf-hub:NAME``.
        pretrained: a tag such as ``openai`` (its weights are downloaded), or the path of a checkpoint.
            Where ``checkpoint`` holds the image tower alone, as those of robust fine-tuning do, the text tower is
            this one's.
        checkpoint: a local file: safetensors, open_clip's .pt/.bin, OpenAI's state dict. With a tag beside it, the tag
            says only what mean, std and activation the weights were trained with, and nothing is downloaded.
        image_size: pixels, if not the architecture's own; position embeddings of loaded weights are then interpolated.
        seed: of random weights, where none are loaded; the global generator is left alone.

    Raises:
        UserError: an unknown name or tag, no network where one is needed, or a checkpoint of another model.
    """
    library = _library()
    text = pretrained
    pretrained, checkpoint = tag_or_file(pretrained, checkpoint)
    _check_names(library, architecture, pretrained)
    weights = read_weights(checkpoint) if checkpoint is not None else None
    if weights is not None and weights.of_image_alone:
        if text is None:
            raise UserError(
                f"checkpoint {weights.path} holds the image tower alone: say whose text tower stands beside it, by "
                "model.pretrained=openai (a tag) or model.pretrained=FILE."
            )
        whole = open_clip(architecture, pretrained=text, image_size=image_size, seed=seed)
        with _named(library, architecture, weights):
            tower = with_image_tower(weights, whole.network.state_dict(), text)
        assign(whole, replace(tower, remarks=[*whole.remarks, *tower.remarks]))
        return whole
    network, description = _build(library, architecture, pretrained, weights, image_size, seed)
    model = _wrap(library, architecture, network, description)
    if weights is not None and pretrained is None and not weights.description and weights.openai is None:
        told = [] if description["quick_gelu"] else _activation(library, architecture, weights.path)
        weights = replace(weights, remarks=[*weights.remarks, *told])
    if weights is not None:
        with _named(library, architecture, weights):
            assign(model, _resized(network, weights) if image_size is not None else weights)
    return model


@contextmanager
def _named(library: Any, architecture: str, weights: Weights) -> Iterator[None]:
    """Context in which the error over weights of another model names the architectures that have their sizes."""
    try:
        yield
    except OtherModel as error:
        names = architectures(library, weights.state)
        if not names or architecture in names:
            raise
        fitting = " or ".join(names[:3])
        raise UserError(f"{error}; its shapes are those of {fitting}: model.architecture={names[0]}.") from error


def _library() -> ModuleType:
    return importlib.import_module("open_clip")  # seconds of imports, which no other model needs


def _check_names(library: Any, architecture: str, tag: str | None) -> None:
    if architecture.startswith(_SCHEMES):
        return
    names = library.list_models()
    if architecture not in names:
        raise UserError(
            f"model.architecture is {architecture!r}, which open_clip does not know" + did_you_mean(architecture, names)
        )
    tags = library.list_pretrained_tags_by_model(architecture)
    if tag is not None and tag not in tags:
        raise UserError(
            f"model.pretrained is {tag!r}, neither a file nor a tag of {architecture} ({', '.join(tags) or 'none'})"
            + did_you_mean(tag, tags)
        )


def _build(
    library: Any, architecture: str, tag: str | None, weights: Weights | None, image_size: int | None, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and its description: that of our own checkpoint, else of the tag, else of the architecture."""
    stored = _stored(architecture, weights)
    known = library.get_pretrained_cfg(architecture, tag) if tag is not None else {}
    # The wrong activation gives wrong embeddings without any error: the weights decide, not only the name.
    quick_gelu = bool(stored.get("quick_gelu") or known.get("quick_gelu") or (weights is not None and weights.openai))
    size = image_size or stored.get("image_size")
    source: dict[str, Any] = (
        {"pretrained": tag} if weights is None else {"load_weights": False, "pretrained_text": False}
    )
    if weights is None and architecture.startswith("hf-hub:"):
        source["require_pretrained"] = True  # else open_clip goes on with random weights where a download fails
    with seeded_constructors(seed), library_errors(architecture, tag), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
        network = library.create_model(architecture, force_image_size=size, force_quick_gelu=quick_gelu, **source)
    from open_clip.transformer import QuickGELU

    found = {**library.get_model_preprocess_cfg(network), **known, **stored}
    description = {
        "factory": "open_clip",
        "architecture": architecture,
        "image_size": _side(network.visual.image_size, architecture),
        "mean": list(found["mean"]),
        "std": list(found["std"]),
        "interpolation": "bilinear" if found.get("interpolation") == "bilinear" else "bicubic",
        "quick_gelu": any(isinstance(module, QuickGELU) for module in network.modules()),
    }
    return network, description


def _activation(library: Any, architecture: str, path: Path) -> list[str]:
    """A sentence where weights that do not say so may have been trained with QuickGELU.

    Both activations fit all shapes, and fine-tuned weights no longer match any published file: so nobody but the user
    knows, and it is told wherever open_clip has the architecture with either.
    """
    other = f"{architecture}-quickgelu"
    if other not in library.list_models():
        return []
    return [
        f"{path} does not say which activation its weights were trained with, and GELU is taken: for weights that come "
        f"from OpenAI's CLIP set model.architecture={other}."
    ]


def _stored(architecture: str, weights: Weights | None) -> dict[str, Any]:
    """The description that our own checkpoint has of its model; empty for a file from elsewhere."""
    stored = dict(weights.description) if weights is not None else {}
    made = stored.get("architecture", stored.get("factory", architecture))
    if made != architecture and not str(made).startswith(_SCHEMES) and not architecture.startswith(_SCHEMES):
        path = weights.path if weights is not None else ""
        raise UserError(
            f"checkpoint {path} is of another model: it was saved from {made}, model.architecture is {architecture}"
        )
    return stored


def _side(size: int | Sequence[int], architecture: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(
            f"model.architecture {architecture} takes images of {size} pixels: expected a square; set model.image_size"
        )
    return sides.pop()


def _wrap(library: Any, architecture: str, network: nn.Module, description: dict[str, Any]) -> DualEncoder:
    with library_errors(architecture):
        tokenizer = library.get_tokenizer(architecture)
    return DualEncoder(
        network,
        tokenizer,
        image_size=description["image_size"],
        mean=description["mean"],
        std=description["std"],
        interpolation=description["interpolation"],
        max_logit_scale=math.inf if getattr(network, "logit_bias", None) is not None else 100.0,
        description=description,
    )


def _resized(network: nn.Module, weights: Weights) -> Weights:
    """The checkpoint with its position embeddings interpolated to the network's grid."""
    from open_clip.model import resize_pos_embed

    expected = network.state_dict()
    weights = located(weights, expected)
    state = fitted(weights.state, expected)
    resize_pos_embed(state, network)
    return replace(weights, state=state)
