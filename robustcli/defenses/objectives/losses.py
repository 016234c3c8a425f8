"""Contrastive losses with positives beside the diagonal.

Shapes: B images, M captions (M = B: caption ``j`` is paired with image ``j``), D embedding.
"""

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


def _cross_entropy(logits: Tensor, matches: Tensor, positives: Positives) -> Tensor:
    paired = torch.arange(len(logits), device=logits.device)
    if positives == "soft":
        return F.cross_entropy(logits, matches / matches.sum(1, keepdim=True), reduction="none")
    if positives == "mask":
        others = matches & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        # A weight of 0 in the softmax: neither pulled nor pushed. The diagonal stays, so no row is empty.
        logits = logits.masked_fill(others, -torch.inf)
    return F.cross_entropy(logits, paired, reduction="none")
