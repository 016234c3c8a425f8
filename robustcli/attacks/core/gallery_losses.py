"""Losses of a query before a gallery, with all that is true of it known: cross-entropy, margin, and the margin over the
spread of the best.

A query takes part in two directions: an image ranks all captions, and each of its captions ranks all images. Only what
the attacker moves is computed anew; the rest of the gallery is clean and condensed into a few columns beforehand.

Shapes: B images asked for, N images, M captions, K wordings of a caption, D embedding, G gallery images, H gallery
captions, P captions of an image, C columns, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import ImageObjective, TextObjective
from robustcli.attacks.core.target import Target

GALLERY_LOSSES = ("cross_entropy", "margin", "dlr")
DIRECTIONS = ("image_to_text", "text_to_image")
NEVER = -1e30  # the logit of what is left out; the gradient of a log-sum over nothing but -inf is NaN
_BELOW_ALL = -2.0  # stands for a cosine where there is nothing to compare with
_ROWS_AT_ONCE = 1 << 12


def log_mass(logits: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Log of the summed exponentials of the chosen entries; where none is, next to no mass and a gradient that is no
    NaN.
    """
    return logits.masked_fill(~chosen, NEVER).logsumexp(dim)


def query_loss(loss: str, similarities: Tensor, matches: Tensor, scale: Tensor) -> Tensor:
    """(...,C) cosines and which of them are true -> (...) losses, above 0 where ``margin`` or ``dlr`` has misled the
    query.

    Args:
        loss: ``cross_entropy``, with every true item a positive: -log of their summed share; ``margin``,
            the best false cosine minus the best true one; ``dlr``, the margin over the distance of the best from the
            third best, where all that is true counts once (after Croce and Hein 2020, equation 6), so that it does
            not change with the scale of the cosines.
        scale: inverse temperature, read by ``cross_entropy`` alone.
    """
    if loss == "cross_entropy":
        logits = scale * similarities
        return logits.logsumexp(-1) - log_mass(logits, matches, -1)
    best_true = similarities.masked_fill(~matches, _BELOW_ALL).amax(-1)
    false = similarities.masked_fill(matches, _BELOW_ALL)
    if loss == "margin":
        return false.amax(-1) - best_true
    best_false = false.topk(min(3, false.shape[-1]), dim=-1).values
    ordered = torch.cat([best_true[..., None], best_false], dim=-1).sort(dim=-1, descending=True).values
    spread = ordered[..., 0] - ordered[..., min(2, ordered.shape[-1] - 1)]
    return (best_false[..., 0] - best_true) / (spread + 1e-12)


@dataclass(frozen=True)
class CaptionQueries:
    """Captions, each in K wordings, before a gallery of images of which only a caption's own one moves.

    Args:
        features: (M,K,D) unit norm.
        columns: (M,K,C) cosines that stand for all images but the own one, without changing the loss.
        matches: (1+C,) bool, which of the own one and of the columns are true.
    """

    loss: str
    features: Tensor
    columns: Tensor
    matches: Tensor
    scale: Tensor

    @classmethod
    def of(cls, loss: str, target: Target, features: Tensor) -> "CaptionQueries":
        """From features (M,K,D) of the captions of ``target``."""
        gallery = target.gallery
        own = gallery.image_rows[target.owner]
        parts = torch.split(torch.arange(len(features), device=features.device), _at_once(features))
        columns = [
            _condensed(
                loss,
                features[rows] @ gallery.image_features.T,
                gallery.caption_matches[rows],
                own[rows],
                target.scale,
            )
            for rows in parts
        ]
        found = torch.cat(columns) if columns else features.new_zeros(0, features.shape[1], 2)
        true = torch.arange(1 + found.shape[-1], device=features.device) < 2
        return cls(loss, features, found, true, target.scale)

    def losses(self, similarities: Tensor, captions: Tensor) -> Tensor:
        """(...,K) cosines of the wordings of ``captions`` (...) with their own images -> (...,K)."""
        row = torch.cat([similarities[..., None], self.columns[captions]], dim=-1)
        return query_loss(self.loss, row, self.matches, self.scale)


@dataclass(frozen=True)
class ImageQueries:
    """Images before a gallery of captions, of which an image's own ones stand in K wordings.

    Args:
        features: (M,K,D) unit norm; None: the clean ones, as they stand in the gallery.
    """

    target: Target
    features: Tensor | None

    def similarities(self, images: Tensor, rows: Tensor) -> Tensor:
        """Features (B,D) of attacked images, their rows (B,) -> (B,H): of an own caption that of the wording which is
        farthest.
        """
        gallery, own = self.target.gallery, self.target.own
        ranked = images @ gallery.text_features.T
        if self.features is None:
            return ranked
        table = own.table[rows]
        places = torch.nonzero(own.valid[rows], as_tuple=True)
        least = own_similarities(images, self.features, table).amin(2)
        return ranked.index_put((places[0], gallery.caption_rows[table[places]]), least[places])

    def losses(self, loss: str, images: Tensor, rows: Tensor) -> Tensor:
        """Features (B,D), rows (B,) -> (B,)."""
        return query_loss(
            loss, self.similarities(images, rows), self.target.gallery.image_matches[rows], self.target.scale
        )


def own_similarities(images: Tensor, features: Tensor, table: Tensor) -> Tensor:
    """(B,D), (M,K,D), (B,P) -> (B,P,K) cosines of each image with all wordings of its captions."""
    return torch.einsum("bd,bpkd->bpk", images, features[table])


def _at_once(features: Tensor) -> int:
    return max(1, _ROWS_AT_ONCE // features.shape[1])


def _condensed(loss: str, similarities: Tensor, matches: Tensor, own: Tensor, scale: Tensor) -> Tensor:
    """(Q,K,G) cosines, (Q,G) matches, (Q,) own columns -> (Q,K,C): first what is true besides the own one, then what
    is false.
    """
    others = matches.scatter(1, own[:, None], False)[:, None]
    false = ~matches.scatter(1, own[:, None], True)[:, None]
    if loss == "cross_entropy":
        logits = scale * similarities
        return torch.stack([log_mass(logits, others, -1), log_mass(logits, false, -1)], dim=-1) / scale
    true = similarities.masked_fill(~others, _BELOW_ALL).amax(-1, keepdim=True)
    best = similarities.masked_fill(~false, _BELOW_ALL).topk(min(3, similarities.shape[-1]), dim=-1).values
    return torch.cat([true, best], dim=-1)


def image_over_gallery(
    loss: str, target: Target, text_features: Tensor | None = None, directions: tuple[str, ...] = DIRECTIONS
) -> ImageObjective:
    """Loss of the image over all captions, plus the mean over its captions of theirs over all images.

    Of the gallery's other images and captions the clean features count.

    Args:
        text_features: attacked captions (M,D), or (M,K,D) of K wordings each, of which the attacker takes for every
            caption and direction the one that serves best; None: the clean captions.
        directions: which of the two count.
    """
    attacked = None if text_features is None else as_wordings(text_features)
    wordings, own = as_wordings(target.text_features) if attacked is None else attacked, target.own
    as_query = ImageQueries(target, attacked)
    as_item = CaptionQueries.of(loss, target, wordings) if "text_to_image" in directions else None

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        features = target.model.encode_image(images)
        total = features.new_zeros(len(rows))
        if "image_to_text" in directions:
            total = total + as_query.losses(loss, features, rows)
        if as_item is not None:
            table = own.table[rows]
            of_captions = as_item.losses(own_similarities(features, wordings, table), table).amax(2)
            total = total + own.mean(of_captions, rows)
        return total

    return objective


def caption_over_gallery(loss: str, target: Target, own_features: Tensor | None = None) -> TextObjective:
    """Loss of a caption over all images; ``own_features`` (M,D): attacked images, one for each caption's own."""
    gallery, scale = target.gallery, target.scale
    own_rows = gallery.image_rows[target.owner]

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        similarities = features @ gallery.image_features.T
        if own_features is not None:
            own = (features * own_features[rows]).sum(1, keepdim=True)
            similarities = similarities.scatter(1, own_rows[rows][:, None], own)
        return query_loss(loss, similarities, gallery.caption_matches[rows], scale)

    return objective


def as_wordings(features: Tensor) -> Tensor:
    """(M,D) as (M,1,D); (M,K,D) as it is."""
    return features[:, None] if features.ndim == 2 else features
