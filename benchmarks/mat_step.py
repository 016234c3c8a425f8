"""One step of multimodal adversarial training against its floor, and against the cheaper defences.

The floor is what no implementation can leave out: the same passes through the same network, written bare. Not in it
are the candidates and their tokens, the choice of words, random starts, projections, checks and flags.

Shapes: B pairs, T tokens, V width of the token table.
"""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Row, cpu_seconds
from benchmarks.setting import Setting
from robustcli.models import DualEncoder

TARGET = 1.15


def run(*, quick: bool = False) -> list[Row]:
    """MAT against its floor; MAT and image-only training against each other and against the clean step."""
    repeats = 2 if quick else 15
    setting = Setting.of(batches=repeats + 1, batch_size=16 if quick else 128)
    # MAT goes first in each round, so it is MAT that pays for the tokens of a new batch.
    sides = {defense: setting.step(defense) for defense in ("mat", "image", "clean")}
    cpu = cpu_seconds({**sides, "floor": _floor(setting)}, repeats=repeats)
    return [
        Row(what="MAT step", against="floor", ours=cpu["mat"], other=cpu["floor"], at_most=TARGET),
        Row(what="MAT step", against="image-only step", ours=cpu["mat"], other=cpu["image"]),
        Row(what="MAT step", against="clean step", ours=cpu["mat"], other=cpu["clean"]),
        Row(what="image-only step", against="clean step", ours=cpu["image"], other=cpu["clean"]),
    ]


def _floor(setting: Setting) -> Callable[[], None]:
    model = setting.model
    batches = [(model.crop(model.tokenizer(batch.captions)), images) for batch, images in setting.batches]
    twin = copy.deepcopy(model).eval().requires_grad_(False)  # switching flags is not part of the floor
    upcoming = itertools.cycle(batches)

    def step() -> None:
        tokens, images = next(upcoming)
        attacked = len(images) // 2  # attacked_captions of defense=mat
        _text_search(twin, tokens[:attacked], images[:attacked])
        text_features = _texts(model, tokens)
        _gradient_to_pixels(twin, images, text_features.detach())
        setting.update(_contrast(_images(model, images), text_features, model))

    return step


def _text_search(model: DualEncoder, tokens: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        image_features = _images(model, images)
    vectors = model.token_embedding().weight[tokens].requires_grad_(True)
    loss = -(_texts(model, tokens, vectors) * image_features).sum()
    torch.autograd.grad(loss, vectors)


def _gradient_to_pixels(model: DualEncoder, images: Tensor, text_features: Tensor) -> None:
    pixels = images.clone().requires_grad_(True)
    torch.autograd.grad(_contrast(_images(model, pixels), text_features, model), pixels)


def _images(model: DualEncoder, images: Tensor) -> Tensor:
    return F.normalize(model.network.encode_image((images - model.mean) / model.std), dim=-1)  # type: ignore[operator]


def _texts(model: DualEncoder, tokens: Tensor, vectors: Tensor | None = None) -> Tensor:
    return F.normalize(model.network.encode_text(tokens, vectors), dim=-1)  # type: ignore[operator]


def _contrast(images: Tensor, texts: Tensor, model: DualEncoder) -> Tensor:
    logits = model.logit_scale * images @ texts.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
