"""Timed passes of a model over a few images, as attacks take them: what a pass of an evaluation will cost.

Nothing is left behind: the model is frozen, its buffers and the global generators are as before, and no result reads
what is computed here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcli.attacks import Pairs, TextAttack, ThreatModel
from robustcli.attacks.core.class_losses import cross_entropy
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import image_objective, text_objective
from robustcli.attacks.core.oracle import ImageOracle, LogitOracle
from robustcli.attacks.core.target import Target

_ENOUGH, _LONG = 0.2, 0.5  # seconds of a timed call: long beside the ticks of a clock; and too long for a larger one
_GROWTH, _LINEAR = 4, 3.0  # times the images, and times the seconds from which more images hardly cost less each
_STEP = 0.1  # of a radius, of the step that is timed with a gradient; its length costs nothing


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What can be timed on a few images of a data set, each a call without arguments.

    Attributes:
        forward: a forward pass of all of them.
        gradient: a forward and a backward pass, and the projected step that an attack takes with it.
        encode: a pass of their captions through the text tower; None of classes.
        search: a search of their captions by an attack on texts.
    """

    forward: Callable[[], object]
    gradient: Callable[[], object]
    encode: Callable[[], object] | None = None
    search: Callable[[TextAttack], object] | None = None


def class_timing(model: Any, images: Tensor, labels: Tensor, threat: ThreatModel) -> Timing:
    """Timing of a classifier on images (B,C,H,W) with labels (B,)."""
    rows, oracle = torch.arange(len(images), device=images.device), LogitOracle(model, QueryCounter.of(len(images)))

    def gradient() -> Tensor:
        found = oracle.gradient(images, rows, lambda logits, _: cross_entropy(logits, labels))[2]
        return _stepped(images, found, threat)

    return Timing(forward=lambda: oracle.logits(images, rows), gradient=gradient)


def pair_timing(model: Any, pairs: Pairs, threat: ThreatModel) -> Timing:
    """Timing of a dual encoder on pairs, before a gallery of themselves."""
    target, images = Target(model, pairs, None, threat), pairs.images
    rows, texts = torch.arange(len(images), device=images.device), target.text_features
    objective = image_objective("own_pair", target, texts)

    def gradient() -> Tensor:
        oracle = ImageOracle(objective, QueryCounter.of(len(images)))
        return _stepped(images, oracle.gradient(images, rows)[1], threat)

    def encode() -> Tensor:
        return Target(model, pairs, None, threat).text_features

    def search(attack: TextAttack) -> object:
        fresh = Target(model, pairs, None, threat)  # its cache of texts is empty, as that of a chunk is
        objective = text_objective(attack.objective, fresh)
        return attack.maximise(model, objective, pairs.captions, pairs.caption_ids, threat, encoder=fresh.encoder)

    return Timing(forward=lambda: model.encode_image(images), gradient=gradient, encode=encode, search=search)


def seconds_of(model: Any, timing_of: Callable[[int], Timing], part: Callable[[Timing], object], most: int) -> float:
    """Seconds of ``part`` of a timing for one image, timed on as many images as take a fifth of a second and, within
    another half, on more as long as that lowers their share of what a call costs, ``most`` at most; the first call,
    which pays for allocations and tables of candidates, is not timed.

    Args:
        timing_of: the timing on the first so many images.
    """
    device = getattr(model, "device", torch.device("cpu"))
    with frozen(model), torch.no_grad():
        count, before = 1, 0.0
        part(timing_of(1))
        while True:
            timing = timing_of(count)
            begin = _now(device)
            part(timing)
            took = _now(device) - begin
            if count >= most or took >= _LONG or (took >= _ENOUGH and took >= _LINEAR * before > 0):
                return took / count
            count, before = min(_GROWTH * count, most), took


def _stepped(images: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    ball = threat.ball
    radius = ball.eps if threat.radius is not None else 1.0
    return ball.project(images + ball.step(gradient, _STEP * radius), images)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a pass is only queued there when its call returns
    return time.perf_counter()
