"""Models whose answers are drawn, asked several times for each image: the draws are folded into the batch.

Shapes: B images, R draws, C channels, H height, W width, Y classes, D embedding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustcli.attacks.core.pairs import DualEncoderLike
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least

Function = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> (B,K)
REDUCTIONS = ("logits", "probabilities")


@runtime_checkable
class Draws(Protocol):
    """A model that draws and has a shorter way to several answers than as many passes; its memory is its own care."""

    def answers(self, images: Tensor, times: int, names: Sequence[int] | None = None) -> Tensor:
        """Images (B,C,H,W) -> (R,B,K), R of them; with B names each image has the same draws in any batch."""


def every_draw(
    function: Function, images: Tensor, draws: int, *, chunk: int | None = None, apart: bool = False
) -> Tensor:
    """(R,B,K): the answers of ``draws`` passes over images (B,C,H,W), folded into as few as ``chunk`` allows.

    With several chunks their activations are not kept: the backward pass computes each chunk again, with the same
    global draws, for half as much time again, so that its memory is that of one chunk. The gradient is the same.

    Args:
        chunk: images of a forward pass at most; None: all ``R B``.
        apart: no pass holds two draws of an image, for models that draw once a pass and not once an image.
    """
    rows = torch.arange(len(images), device=images.device)
    if isinstance(function, Draws) and len(images):
        return function.answers(images, draws)
    if not len(images):
        return function(images).expand(draws, -1, -1)
    size = chunk or draws * len(images)
    if apart:
        pieces = list(torch.split(rows, min(size, len(rows)))) * draws
    else:
        pieces = list(torch.split(rows.repeat(draws), size))
    bounded = chunk is not None and len(pieces) > 1
    if bounded and images.requires_grad and torch.is_grad_enabled():
        answers = [checkpoint(_asked, function, images, piece, use_reentrant=False) for piece in pieces]
    else:
        answers = [_asked(function, images, piece) for piece in pieces]
    together = torch.cat(answers)
    return together.reshape(draws, len(images), *together.shape[1:])


def _asked(function: Function, images: Tensor, rows: Tensor) -> Tensor:
    return function(images[rows])


def draws_by_pass(function: Function, images: Tensor) -> bool:
    """Whether two copies of an image in one pass get one answer, although the next pass gives another.

    Folding the draws into the batch would then average nothing. A random resize of the whole batch is of this kind.
    """
    if not len(images):
        return False
    twice = images[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = function(twice), function(twice)

    def differ(some: Tensor, other: Tensor) -> bool:
        return not torch.allclose(some, other, rtol=1e-3, atol=1e-4, equal_nan=True)

    return differ(first, second) and not differ(first[0], first[1])


class AveragedClassifier(nn.Module):
    """A classifier whose logits are an average over draws; a model of its own, or what `EOT` attacks.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); it draws from torch's global generators.
        draws: passes over each image, 1 or more.
        chunk: images of a forward pass at most, the bound of the memory; None: all draws of all images in one.
        reduce: ``logits``, their mean; ``probabilities``, the logarithm of the mean softmax, in which no draw counts
            for more than its vote.
        apart: see `every_draw`.

    Raises:
        UserError: a number below 1, or an unknown ``reduce``.
    """

    def __init__(
        self,
        model: Function,
        draws: int,
        *,
        chunk: int | None = None,
        reduce: str = "logits",
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.apart = model, apart
        self.draws, self.chunk, self.reduce = checked(draws, chunk, reduce)

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        answers = every_draw(self.model, images, self.draws, chunk=self.chunk, apart=self.apart)
        if self.reduce == "logits":
            return answers.mean(0)
        return F.log_softmax(answers, -1).logsumexp(0) - math.log(self.draws)


class EncoderWrapper(nn.Module):
    """A dual encoder that is another one, but for what a subclass changes."""

    def __init__(self, model: DualEncoderLike) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the tokens are looked up."""
        return self.token_embedding().weight.device

    @property
    def logit_scale(self) -> Tensor:
        return self.model.logit_scale

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        return self.model.tokenize(captions)

    def encode_text(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        return self.model.encode_text(tokens, embeddings)

    def token_embedding(self) -> nn.Embedding:
        return self.model.token_embedding()


class AveragedEncoder(EncoderWrapper):
    """A dual encoder whose image embedding is the mean over draws, scaled back to unit norm.

    Args:
        model: it draws from torch's global generators when it encodes images.
        draws, chunk, apart: see `AveragedClassifier`.

    Attributes:
        asked, graded: images that were encoded so far, and those of them that a gradient can reach; each costs
            ``draws`` passes.
    """

    def __init__(self, model: DualEncoderLike, draws: int, *, chunk: int | None = None, apart: bool = False) -> None:
        super().__init__(model)
        self.apart = apart
        self.draws, self.chunk, _ = checked(draws, chunk)
        self.asked = self.graded = 0

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        self.asked += len(images)
        self.graded += len(images) if images.requires_grad and torch.is_grad_enabled() else 0
        features = every_draw(self.model.encode_image, images, self.draws, chunk=self.chunk, apart=self.apart)
        return F.normalize(features.mean(0), dim=-1)


def checked(draws: int, chunk: int | None, reduce: str = "logits") -> tuple[int, int | None, str]:
    """The three as they are, or a `UserError`."""
    if reduce not in REDUCTIONS:
        raise UserError(f"evaluation.eot.reduce is {reduce!r}: choose one of {', '.join(REDUCTIONS)}.")
    least = {"node": "evaluation.eot"}
    return at_least("draws", draws, 1, **least), None if chunk is None else at_least("chunk", chunk, 1, **least), reduce
