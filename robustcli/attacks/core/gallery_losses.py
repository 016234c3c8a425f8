"""Losses over a gallery, per sample: cross-entropy, margin and difference of logits ratio (DLR) of a query.

A pair takes part in two directions: an image ranks all captions, and each of its captions ranks all images. Positives
are the gallery items that are true of the query, negatives all others. Only the similarities of attacked items are
computed anew; the rest of the gallery is clean and condensed into a few columns beforehand.

Shapes: B images of a call, N images, M captions, K candidates of a caption, D embedding, G gallery images, H gallery
captions, P captions of an image, C columns, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.class_losses import unsaturated
from robustcli.attacks.core.oracle import ImageObjective, TextObjective
from robustcli.attacks.core.target import Target
from robustcli.utils.rowwise import cosines, in_parts, paired_cosines

GALLERY_LOSSES = ("cross_entropy", "margin", "dlr")
DIRECTIONS = ("image_to_text", "text_to_image")
MASKED_LOGIT = -1e30  # of a masked logit; the gradient of a log-sum-exp over nothing but -inf is NaN
_BELOW_ALL = -2.0  # of a masked cosine, below any other


def log_mass(logits: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Log-sum-exp over the chosen entries; where none is, next to no mass, and a gradient that is finite."""
    return logits.masked_fill(~chosen, MASKED_LOGIT).logsumexp(dim)


def query_loss(loss: str, similarities: Tensor, matches: Tensor, scale: Tensor) -> Tensor:
    """Losses (...) of queries, from their cosines (...,C); ``margin`` and ``dlr`` are above 0 where the query is
    fooled.

    Args:
        loss: ``cross_entropy``, -log of the summed softmax of all positives; ``margin``, the best negative cosine minus
            the best positive one; ``dlr``, the margin over the distance of the best from the third best, all positives
            counted once (after Croce and Hein 2020, equation 6), so that it does not change with the scale of the
            cosines.
        matches: (...,C) bool, the positives.
        scale: inverse temperature, read by ``cross_entropy`` alone.
    """
    if loss == "cross_entropy":
        logits = scale * similarities
        positives, negatives = log_mass(logits, matches, -1), log_mass(logits, ~matches, -1)
        # Without a negative there is nothing to gain: the plain loss is 0 there, and so is its gradient.
        log_odds = torch.where(negatives > MASKED_LOGIT / 2, negatives - positives, 0.0)
        return unsaturated(logits.logsumexp(-1) - positives, log_odds)
    best_positive = similarities.masked_fill(~matches, _BELOW_ALL).amax(-1)
    negatives = similarities.masked_fill(matches, _BELOW_ALL)
    if loss == "margin":
        return negatives.amax(-1) - best_positive
    best_negatives = negatives.topk(min(3, negatives.shape[-1]), dim=-1).values
    ordered = torch.cat([best_positive[..., None], best_negatives], dim=-1).sort(dim=-1, descending=True).values
    spread = ordered[..., 0] - ordered[..., min(2, ordered.shape[-1] - 1)]
    return (best_negatives[..., 0] - best_positive) / (spread + 1e-12)


@dataclass(frozen=True)
class CaptionQueries:
    """Captions as queries, each with K candidates, before a gallery of images of which only the paired one is attacked.

    Args:
        features: (M,K,D) unit norm.
        columns: (M,K,C) cosines that stand for all images but the paired one, without changing the loss.
        matches: (1+C,) bool, the positives among the paired image and the columns.
    """

    loss: str
    features: Tensor
    columns: Tensor
    matches: Tensor
    scale: Tensor

    @classmethod
    def of(cls, loss: str, target: Target, features: Tensor) -> "CaptionQueries":
        """From features (M,K,D) of the captions of ``target``; one comparison with the whole gallery, in parts."""
        gallery = target.gallery
        paired_rows = gallery.image_rows[target.owner]

        def condensed(candidates: Tensor, captions: Tensor) -> Tensor:
            similarities, matches = (
                cosines(candidates, gallery.image_features),
                gallery.caption_matches.matrix(captions),
            )
            return _condensed(loss, similarities, matches, paired_rows[captions], target.scale)

        captions = torch.arange(len(features), device=features.device).repeat_interleave(features.shape[1])
        columns = in_parts(condensed, len(gallery.image_features), features.flatten(0, 1), captions)
        matches = torch.arange(1 + columns.shape[1], device=features.device) < 2
        return cls(loss, features, columns.view(*features.shape[:2], columns.shape[1]), matches, target.scale)

    def losses(self, similarities: Tensor, captions: Tensor) -> Tensor:
        """(...,K) losses, from cosines (...,K) of the candidates of ``captions`` (...) with their paired images."""
        columns = torch.cat([similarities[..., None], self.columns[captions]], dim=-1)
        return query_loss(self.loss, columns, self.matches, self.scale)


@dataclass(frozen=True)
class ImageQueries:
    """Images as queries before a gallery of captions, of which the paired ones have K candidates each.

    Args:
        features: (M,K,D) unit norm; None: those of the clean captions, as in the gallery.
    """

    target: Target
    features: Tensor | None

    def similarities(self, images: Tensor, rows: Tensor) -> Tensor:
        """(B,H) cosines, from features (B,D) of attacked images and their rows (B,); a paired caption counts by its
        least similar candidate.
        """
        gallery, paired = self.target.gallery, self.target.paired
        similarities = cosines(images, gallery.text_features)
        if self.features is None:
            return similarities
        captions = paired.table[rows]
        places = torch.nonzero(paired.valid[rows], as_tuple=True)
        least_similar = paired_similarities(images, self.features, captions).amin(2)
        return similarities.index_put((places[0], gallery.caption_rows[captions[places]]), least_similar[places])

    def losses(self, loss: str, images: Tensor, rows: Tensor) -> Tensor:
        """(B,) losses, from features (B,D) of attacked images and their rows (B,)."""
        matches = self.target.gallery.image_matches

        def of_part(images: Tensor, rows: Tensor) -> Tensor:
            return query_loss(loss, self.similarities(images, rows), matches.matrix(rows), self.target.scale)

        return in_parts(of_part, matches.width, images, rows)


def paired_similarities(images: Tensor, features: Tensor, table: Tensor) -> Tensor:
    """(B,P,K) cosines of images (B,D) with all candidates (M,K,D) of their captions ``table`` (B,P)."""
    return paired_cosines(images, features[table])


def _condensed(loss: str, similarities: Tensor, matches: Tensor, paired_rows: Tensor, scale: Tensor) -> Tensor:
    """(Q,C) columns that give the same loss as (Q,G) cosines: the positives besides the paired one, then negatives.

    Cross-entropy needs the log-sum-exp of either (C = 2), margin and DLR the best positive and the three best
    negatives.

    Args:
        matches: (Q,G) bool.
        paired_rows: (Q,) long, column of the paired item.
    """
    other_positives = matches.scatter(1, paired_rows[:, None], False)
    negatives = ~matches.scatter(1, paired_rows[:, None], True)
    if loss == "cross_entropy":
        logits = scale * similarities
        return torch.stack([log_mass(logits, other_positives, -1), log_mass(logits, negatives, -1)], dim=-1) / scale
    best_positive = similarities.masked_fill(~other_positives, _BELOW_ALL).amax(-1, keepdim=True)
    best_negatives = (
        similarities.masked_fill(~negatives, _BELOW_ALL).topk(min(3, similarities.shape[-1]), dim=-1).values
    )
    return torch.cat([best_positive, best_negatives], dim=-1)


def image_over_gallery(
    loss: str, target: Target, text_features: Tensor | None = None, directions: tuple[str, ...] = DIRECTIONS
) -> ImageObjective:
    """Loss of an image over all captions, plus the mean over its captions of their loss over all images.

    All other images and captions of the gallery are clean. An evaluation is one pass of the image tower; the features
    of the text are computed beforehand.

    Args:
        text_features: attacked captions (M,D), or (M,K,D) of K candidates each, of which the attacker takes for every
            caption and direction the one that serves best; None: the clean captions.
        directions: those that are summed.
    """
    edited = None if text_features is None else as_candidates(text_features)
    candidates, paired = as_candidates(target.text_features) if edited is None else edited, target.paired
    as_query = ImageQueries(target, edited)
    as_item = CaptionQueries.of(loss, target, candidates) if "text_to_image" in directions else None

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        features = target.model.encode_image(images)
        total = features.new_zeros(len(rows))
        if "image_to_text" in directions:
            total = total + as_query.losses(loss, features, rows)
        if as_item is not None:
            captions = paired.table[rows]
            of_captions = as_item.losses(paired_similarities(features, candidates, captions), captions).amax(2)
            total = total + paired.mean(of_captions, rows)
        return total

    return objective


def caption_over_gallery(loss: str, target: Target, paired_features: Tensor | None = None) -> TextObjective:
    """Loss of a caption over all images; ``paired_features`` (M,D): attacked images, one for each caption's own."""
    gallery, scale = target.gallery, target.scale
    paired_rows = gallery.image_rows[target.owner]

    def of_part(features: Tensor, rows: Tensor) -> Tensor:
        similarities = cosines(features, gallery.image_features)
        if paired_features is not None:
            paired = (features * paired_features[rows]).sum(1, keepdim=True)
            similarities = similarities.scatter(1, paired_rows[rows][:, None], paired)
        return query_loss(loss, similarities, gallery.caption_matches.matrix(rows), scale)

    return lambda features, rows: in_parts(of_part, len(gallery.image_features), features, rows)


def as_candidates(features: Tensor) -> Tensor:
    """(M,D) as (M,1,D); (M,K,D) as it is."""
    return features[:, None] if features.ndim == 2 else features
