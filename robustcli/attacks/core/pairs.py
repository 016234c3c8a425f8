"""Input and output of retrieval attacks: pairs, gallery and adversarial result, and the interface of a dual encoder.

Shapes: N images, M captions, C channels, D embedding, G gallery images, H gallery captions, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robustcli.utils.relevance import Relevance


class DualEncoderLike(Protocol):
    """Interface of a dual encoder: unit-norm embeddings of images and of captions in one space."""

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D)."""

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B,T) long."""

    def encode_text(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """(B,T) -> (B,D); ``embeddings`` (B,T',W) stands in for the token look-up."""

    def token_embedding(self) -> nn.Embedding:
        """The table of the token look-up."""

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, a scalar."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images with their captions; an image may have any number of captions, also none.

    Args:
        images: (N,C,H,W) float32 in [0,1].
        captions: M captions.
        owner: (M,) long, the image of each caption, as a row of ``images``.
        image_ids, caption_ids: (N,) and (M,) long, seeds of the random draws of each; the same in any batch.
        relevance: (N,M) bool, True where a caption is true of an image (a positive); None: of its owner alone. Read
            where no gallery is given.

    Raises:
        ValueError: a shape, a dtype, a pixel out of [0,1] or NaN, an owner that is not there.
    """

    images: Tensor
    captions: tuple[str, ...]
    owner: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    relevance: Tensor | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        object.__setattr__(self, "captions", tuple(self.captions))
        n, m = len(self.images), len(self.captions)
        for name, tensor, length in (
            ("owner", self.owner, m),
            ("image_ids", self.image_ids, n),
            ("caption_ids", self.caption_ids, m),
        ):
            if tensor.shape != (length,):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected ({length},)")
        if m and not 0 <= int(self.owner.min()) <= int(self.owner.max()) < n:
            raise ValueError(f"owner names an image that is not there: expected rows from 0 to {n - 1}")
        if self.relevance is not None and self.relevance.shape != (n, m):
            raise ValueError(f"relevance has shape {tuple(self.relevance.shape)}: expected ({n}, {m})")

    def matches(self) -> Tensor:
        """(N,M) bool: ``relevance``, or the owners alone."""
        if self.relevance is not None:
            return self.relevance.to(self.images.device)
        rows = torch.arange(len(self.images), device=self.images.device)
        return self.owner.to(self.images.device)[None, :] == rows[:, None]


def check_images(images: Tensor) -> None:
    """Raise `ValueError` unless ``images`` is (B,C,H,W) float32 in [0,1] without NaN."""
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}: expected float32 (B, C, H, W)")
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            "images hold a NaN or a value out of [0, 1]: give pixels in [0, 1], mean and std belong into the model"
        )


def check_labels(labels: Tensor) -> None:
    """Raise `ValueError` unless ``labels`` is (B,) of whole numbers."""
    if labels.ndim != 1 or labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}: expected whole numbers (B,), such as labels.long()"
        )


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Clean features of the gallery that the queries of a chunk are ranked against, and the rows of the chunk in it.

    Args:
        image_features, text_features: (G,D) and (H,D) unit norm.
        image_matches: (N,H), positives of each image of the chunk: the gallery captions that are true of it.
        caption_matches: (M,G), positives of each caption of the chunk: the gallery images that it is true of.
        image_rows, caption_rows: (N,) and (M,) long, the chunk's own rows in the gallery.
    """

    image_features: Tensor
    text_features: Tensor
    image_matches: Relevance
    caption_matches: Relevance
    image_rows: Tensor
    caption_rows: Tensor

    @classmethod
    def of(cls, model: DualEncoderLike, pairs: Pairs, relevance: Tensor | None = None) -> "Gallery":
        """The chunk itself as the gallery; ``relevance`` (N,M) bool, default that of ``pairs``."""
        with torch.no_grad():
            text_features = model.encode_text(model.tokenize(pairs.captions))
            return cls.of_features(model.encode_image(pairs.images), text_features, pairs, relevance)

    @classmethod
    def of_features(
        cls, image_features: Tensor, text_features: Tensor, pairs: Pairs, relevance: Tensor | None = None
    ) -> "Gallery":
        """Like `of`, from features that are there already."""
        matrix = pairs.matches() if relevance is None else relevance
        matches = Relevance.of_matrix(matrix.to(image_features.device))
        return cls(
            image_features=image_features,
            text_features=text_features,
            image_matches=matches,
            caption_matches=matches.T,
            image_rows=torch.arange(len(pairs.images), device=image_features.device),
            caption_rows=torch.arange(len(pairs.captions), device=image_features.device),
        )


class Alternative(NamedTuple):
    """Unjudged output of a search, N images and M captions, and of an ensemble the member that each is from."""

    images: Tensor
    captions: tuple[str, ...]
    image_members: tuple[str, ...] = ()
    caption_members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Result of a retrieval attack on some pairs, as its base class judged it.

    Args:
        images, captions: adversarial.
        norm: (N,) float64, distance of each image in the attack's norm, 0 where no image is attacked.
        edits: (M,) long, counted on the adversarial captions.
        image_success, caption_success: (N,) and (M,) bool: the query is fooled, its top-ranked item is a negative;
            ties count against the query. A query is judged with its own pair attacked and the rest of the gallery
            clean, so its result does not depend on its chunk.
        queries, gradients: (N,) long, forward and backward passes for each image and its captions.
        zero_gradients, nan_gradients: (N,) long, number of the image's gradients that were all zero, or held a NaN (and
            were dropped).
        image_members, caption_members: of each image and caption the member of an ensemble that it is from, empty where
            none gained anything; no entries of other attacks.
    """

    images: Tensor
    captions: tuple[str, ...]
    norm: Tensor
    edits: Tensor
    image_success: Tensor
    caption_success: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nan_gradients: Tensor
    image_members: tuple[str, ...] = ()
    caption_members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageAdversarial:
    """Result of an attack on a classifier with B images.

    Args:
        images: adversarial, (B,C,H,W) in [0,1].
        success: (B,) bool: the model is fooled, for a minimum-norm attack within ``eps``.
        norm, queries, gradients, zero_gradients, nan_gradients: (B,), see `Adversarial`; the norm of a minimum-norm
            attack is infinite where the model is not fooled.
        members: of each image the member of an ensemble that gave it, such as ``apgd-t``; empty of other attacks.
    """

    images: Tensor
    success: Tensor
    norm: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nan_gradients: Tensor
    members: tuple[str, ...] = ()
