"""Randomised models averaged over draws, which are folded into the batch.

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
    """Randomised model with several answers at less than the cost of as many passes; it bounds its memory itself."""

    def answers(self, images: Tensor, times: int, names: Sequence[int] | None = None) -> Tensor:
        """(R,B,K): R = ``times`` answers for images (B,C,H,W); with B ``names`` an image has the same draws in any
        batch.
        """


def evaluate_draws(
    function: Function, images: Tensor, draws: int, *, chunk: int | None = None, apart: bool = False
) -> Tensor:
    """(R,B,K): answers of R = ``draws`` passes over images (B,C,H,W), folded into as few as ``chunk`` allows.

    With several chunks their activations are checkpointed: the backward pass computes each chunk again, with the same
    global draws, for half as much time again, so that its memory is that of one chunk. The gradient is the same.

    Args:
        chunk: images of a forward pass at most; None: all ``R B``.
        apart: no pass holds two draws of an image, for models that draw once a pass instead of once an image.
    """
    rows = torch.arange(len(images), device=images.device)
    if isinstance(function, Draws) and len(images):
        return function.answers(images, draws)
    if not len(images):
        return function(images).expand(draws, -1, -1)
    size = chunk or draws * len(images)
    if apart:
        chunks = list(torch.split(rows, min(size, len(rows)))) * draws
    else:
        chunks = list(torch.split(rows.repeat(draws), size))
    checkpointed = chunk is not None and len(chunks) > 1
    if checkpointed and images.requires_grad and torch.is_grad_enabled():
        answers = [
            checkpoint(_rows_of, function, images, rows_of_chunk, use_reentrant=False) for rows_of_chunk in chunks
        ]
    else:
        answers = [_rows_of(function, images, rows_of_chunk) for rows_of_chunk in chunks]
    stacked = torch.cat(answers)
    return stacked.reshape(draws, len(images), *stacked.shape[1:])


def _rows_of(function: Function, images: Tensor, rows: Tensor) -> Tensor:
    return function(images[rows])


def draws_by_pass(function: Function, images: Tensor) -> bool:
    """True if the model draws once a pass: two copies of an image get one answer, and another one in the next pass.

    Draws that are folded into the batch would then average nothing. A random resize of the whole batch is of this kind.
    """
    if not len(images):
        return False
    two_copies = images[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = function(two_copies), function(two_copies)

    def differ(some: Tensor, other: Tensor) -> bool:
        return not torch.allclose(some, other, rtol=1e-3, atol=1e-4, equal_nan=True)

    return differ(first, second) and not differ(first[0], first[1])


class AveragedClassifier(nn.Module):
    """Classifier whose logits are an average over draws, a defence of its own, or the model that `EOT` attacks.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); it draws from torch's global generators.
        draws: passes over each image, 1 or more.
        chunk: images of a forward pass at most, the bound of the memory; None: all draws of all images in one.
        reduce: ``logits``, their mean; ``probabilities``, the logarithm of the mean softmax, in which no draw counts
            for more than its vote.
        apart: see `evaluate_draws`.

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
        answers = evaluate_draws(self.model, images, self.draws, chunk=self.chunk, apart=self.apart)
        if self.reduce == "logits":
            return answers.mean(0)
        return F.log_softmax(answers, -1).logsumexp(0) - math.log(self.draws)


class EncoderWrapper(nn.Module):
    """Base class of wrappers of a dual encoder; everything is that of the model, but for what a subclass overrides."""

    def __init__(self, model: DualEncoderLike) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Device of the token table."""
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
    """Dual encoder whose image embedding is the mean over draws, scaled back to unit norm.

    Args:
        model: it draws from torch's global generators when it encodes images.
        draws, chunk, apart: see `AveragedClassifier`.

    Attributes:
        forward_images, backward_images: images encoded so far, and those of them that a gradient was recorded for; each
            costs ``draws`` passes.
    """

    def __init__(self, model: DualEncoderLike, draws: int, *, chunk: int | None = None, apart: bool = False) -> None:
        super().__init__(model)
        self.apart = apart
        self.draws, self.chunk, _ = checked(draws, chunk)
        self.forward_images = self.backward_images = 0

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        self.forward_images += len(images)
        self.backward_images += len(images) if images.requires_grad and torch.is_grad_enabled() else 0
        features = evaluate_draws(self.model.encode_image, images, self.draws, chunk=self.chunk, apart=self.apart)
        return F.normalize(features.mean(0), dim=-1)


def checked(draws: int, chunk: int | None, reduce: str = "logits") -> tuple[int, int | None, str]:
    """Checked settings, as they are.

    Raises:
        UserError: a number below 1, or an unknown ``reduce``.
    """
    if reduce not in REDUCTIONS:
        raise UserError(f"evaluation.eot.reduce is {reduce!r}: choose one of {', '.join(REDUCTIONS)}.")
    least = {"node": "evaluation.eot"}
    return at_least("draws", draws, 1, **least), None if chunk is None else at_least("chunk", chunk, 1, **least), reduce
