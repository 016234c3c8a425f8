"""Losses of the objectives: contrastive ones with positives beside the diagonal, distances to the original model.

Shapes: B images, M captions (M = B: caption ``j`` is paired with image ``j``), Y texts, D embedding, N patches.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Positives = Literal["diagonal", "mask", "soft"]
Directions = Literal["both", "image_to_text"]


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    matches: Tensor,
    *,
    positives: Positives = "mask",
    directions: Directions = "both",
) -> Tensor:
    """Contrastive loss of each of a batch of pairs (Radford et al. 2021, figure 3), (B,).

    Args:
        image_features, text_features: (B,D) unit norm, paired by row.
        logit_scale: scalar, the temperature's inverse.
        matches: (B,B) bool, True where the caption of the column is true of the image of the row; the diagonal is.
        positives: ``diagonal``: every other pair is a negative, true or not; ``mask``: other true pairs are left out;
            ``soft``: the target is spread evenly over all true pairs (Li et al. 2021, ALBEF).
        directions: ``both``, or ``image_to_text`` alone, which takes the captions as classes (TeCoA, Mao et al. 2023).
    """
    logits = logit_scale * image_features @ text_features.T  # (B,B): cosine similarities over the temperature
    loss = _cross_entropy(logits, matches, positives)
    if directions == "image_to_text":
        return loss
    return (loss + _cross_entropy(logits.T, matches.T, positives)) / 2


def rows_of_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    matches: tuple[Tensor, Tensor],
    *,
    rows: slice,
    positives: Positives = "mask",
    directions: Directions = "both",
) -> Tensor:
    """`info_nce` of the pairs ``rows`` among N, (B,), from B x N similarities at a time in place of N x N.

    Args:
        image_features, text_features: (N,D) unit norm, paired by row; gradients flow to all of them.
        logit_scale: scalar, the temperature's inverse.
        matches: two of (B,N) bool: captions that are true of the images of the rows, and images of which the captions
            of the rows are true.
        positives, directions: see `info_nce`.
    """
    logits = logit_scale * image_features[rows] @ text_features.T
    loss = _cross_entropy(logits, matches[0], positives, rows.start)
    if directions == "image_to_text":
        return loss
    logits = logit_scale * text_features[rows] @ image_features.T
    return (loss + _cross_entropy(logits, matches[1], positives, rows.start)) / 2


def squared_distance(features: Tensor, original: Tensor) -> Tensor:
    """(B,D) and (B,D) -> (B,): summed over the dimensions, as the papers do, not their mean."""
    return (features - original).square().sum(1)


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Logits (B,Y) and (B,Y) -> (B,): KL(softmax of ``target`` || softmax of ``logits``); gradients flow to both."""
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="none", log_target=True).sum(1)


def attention_maps(patches: Tensor, texts: Tensor, *, size: int) -> Tensor:
    """Where images show what a text says (Yu et al. 2024, TGA-ZSR), (B,size,size) in [0,1].

    The products of the patches with the text, as a grid, are stretched to [0,1] and then enlarged bilinearly.

    Args:
        patches: (B,N,D), N a square number, row by row.
        texts: (B,D) of unit norm, one an image.
    """
    products = (patches @ texts.unsqueeze(2)).squeeze(2)
    low, high = products.amin(1, keepdim=True), products.amax(1, keepdim=True)
    # Equal products have no map; the bound keeps their gradient finite.
    grid = (products - low) / (high - low).clamp(min=torch.finfo(products.dtype).eps)
    side = math.isqrt(products.shape[1])
    return F.interpolate(grid.view(-1, 1, side, side), (size, size), mode="bilinear").squeeze(1)


def _cross_entropy(logits: Tensor, matches: Tensor, positives: Positives, first: int = 0) -> Tensor:
    """(B,N) -> (B,), the pair of row i being column ``first`` + i."""
    rows = torch.arange(len(logits), device=logits.device)
    own = torch.zeros_like(matches)
    own[rows, first + rows] = True
    if positives == "soft":
        matches = matches | own
        return F.cross_entropy(logits, matches / matches.sum(1, keepdim=True), reduction="none")
    if positives == "mask":
        # A weight of 0 in the softmax: neither pulled nor pushed. The diagonal stays, so no row is empty.
        logits = logits.masked_fill(matches & ~own, -torch.inf)
    return F.cross_entropy(logits, first + rows, reduction="none")
