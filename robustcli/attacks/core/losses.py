"""Losses of retrieval attacks by name, per sample: those over a gallery, and the similarities that the field attacks.

The loss of a sample reads its own attacked item and clean items of others, so that it does not depend on its batch; the
one exception is ``infonce``, the loss of training.

Shapes: B images of a call, N images, M captions, K candidates, D embedding, P captions of an image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.gallery_losses import (
    GALLERY_LOSSES,
    caption_over_gallery,
    image_over_gallery,
    log_mass,
)
from robustcli.attacks.core.oracle import ImageObjective, TextObjective
from robustcli.attacks.core.target import PairedCaptions, Target
from robustcli.utils.numbers import one_of
from robustcli.utils.rowwise import cosines, in_parts, paired_cosines
from robustcli.utils.seeding import generator

__all__ = [
    "IMAGE_LOSSES",
    "TEXT_LOSSES",
    "PairedCaptions",
    "Target",
    "divergence",
    "guided",
    "image_objective",
    "targeted",
    "text_drift",
    "text_objective",
]

IMAGE_LOSSES = (*GALLERY_LOSSES, "own_pair", "drift", "infonce")
TEXT_LOSSES = ("guided", "drift", "cross_entropy", "margin", "targeted")
TARGETS = 3  # of a caption that is edited towards one of them


def image_objective(loss: str, target: Target, text_features: Tensor | None = None) -> ImageObjective:
    """The loss called ``loss`` of the images of ``target``; ``text_features`` (M,D): attacked captions, default the
    clean ones.

    Before a gallery ``infonce`` is the cross-entropy over it, per sample: a verdict may not depend on the batch.
    """
    if one_of("loss", loss, IMAGE_LOSSES) == "infonce" and target.has_gallery:
        loss = "cross_entropy"
    if loss in GALLERY_LOSSES:
        return image_over_gallery(loss, target, text_features)
    makers = {"own_pair": _own_pair, "drift": _image_drift, "infonce": _infonce}
    return makers[loss](target, text_features)


def text_objective(
    objective: str, target: Target, image_features: Tensor | None = None, *, seed: int = 0
) -> TextObjective:
    """The loss called ``objective`` of the captions of ``target``; ``image_features`` (N,D): attacked images,
    default the clean ones; ``seed``: of the targets that ``targeted`` draws.
    """
    if one_of("objective", objective, TEXT_LOSSES) in GALLERY_LOSSES:
        paired_features = None if image_features is None else image_features[target.owner]
        return caption_over_gallery(objective, target, paired_features)
    if objective == "targeted":
        return targeted(target, seed)
    makers = {"guided": guided, "drift": text_drift}
    return makers[objective](target, image_features)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of softmaxed embeddings, (...,D) -> (...), in float64: the values are 1e-6 to 1e-3 (Zhang
    et al. 2022).
    """
    log_p, log_q = F.log_softmax(first.double(), -1), F.log_softmax(second.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _paired_similarities(features: Tensor, text_features: Tensor, table: Tensor) -> Tensor:
    """(B,P) cosines of images (B,D) with their captions ``table`` (B,P), rows of ``text_features`` (M,D)."""
    return paired_cosines(features, text_features[table])


def _own_pair(target: Target, text_features: Tensor | None) -> ImageObjective:
    """Minus the mean cosine to the paired captions, which SGA minimises (Lu et al. 2023); it has no negatives."""
    paired, texts = target.paired, target.text_features if text_features is None else text_features

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        similarities = _paired_similarities(target.model.encode_image(images), texts, paired.table[rows])
        return -paired.mean(similarities, rows)

    return objective


def _image_drift(target: Target, _text_features: Tensor | None) -> ImageObjective:
    """KL(attacked image || clean image); its gradient is zero at the clean image, so it needs a random start."""

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return divergence(target.model.encode_image(images), target.image_features[rows])

    return objective


def _infonce(target: Target, text_features: Tensor | None) -> ImageObjective:
    """Contrastive loss of the batch, all images attacked at once: that of training, where other positives are no
    negatives.

    Row ``i`` is the mean over the captions of image ``i`` of the cross-entropies of both directions, halved; the attack
    raises their sum. It reads the whole batch, so a call has to hold all rows.
    """
    texts = target.text_features if text_features is None else text_features
    matches, owner, paired, scale = target.pairs.matches(), target.owner, target.paired, target.scale
    columns = torch.arange(len(owner), device=owner.device)

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        if len(rows) != len(matches):
            raise ValueError(f"infonce reads the whole batch: asked for {len(rows)} of {len(matches)} images")
        logits = scale * target.model.encode_image(images) @ texts.T
        positives = logits[owner, columns]
        negative_texts, negative_images = log_mass(logits, ~matches, 1), log_mass(logits, ~matches, 0)
        loss = F.softplus(negative_texts[owner] - positives) + F.softplus(negative_images - positives)
        return paired.mean(loss[paired.table], rows) / 2

    return objective


def guided(target: Target, image_features: Tensor | None) -> TextObjective:
    """Minus the cosine to the paired image (Lu et al. 2023)."""
    images = target.image_features if image_features is None else image_features

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        return -(features * images[target.owner[rows]]).sum(1)

    return objective


def text_drift(target: Target, _image_features: Tensor | None) -> TextObjective:
    """KL(clean caption || attacked caption) (Zhang et al. 2022); it needs no image."""
    return lambda features, rows: divergence(target.text_features[rows], features)


def targeted(target: Target, seed: int) -> TextObjective:
    """The cosine to the closest of `TARGETS` images of the gallery, drawn among those that the caption is not true of
    (after the retrieval protocol of Abad Rocamora et al. 2025, LEAF).

    A draw depends on ``seed``, the caption's id and the gallery, so on no other caption of the batch. Without an image
    that it is not true of a caption has the loss 0 and stays as it is. The verdict is as for any other loss: a caption
    is fooled where any false image ranks first, be it a target or not.
    """
    images, matches = target.gallery.image_features, target.gallery.caption_matches.to("cpu")
    none, drawn = len(images), []
    for row, caption_id in enumerate(target.pairs.caption_ids.tolist()):
        false = torch.nonzero(~matches.matrix(torch.tensor([row]))[0]).flatten()
        chosen = false[torch.randperm(len(false), generator=generator(seed, "targets", caption_id))[:TARGETS]]
        drawn.append(F.pad(chosen, (0, TARGETS - len(chosen)), value=none))
    rows_of_targets = torch.stack(drawn).to(images.device) if drawn else images.new_zeros(0, TARGETS).long()

    def to_gallery(features: Tensor, table: Tensor) -> Tensor:
        return cosines(features, images).gather(1, table)

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        table = rows_of_targets[rows]
        missing = table == none
        to_targets = in_parts(to_gallery, none, features, table.masked_fill(missing, 0))
        best = to_targets.masked_fill(missing, -torch.inf).amax(1)
        return torch.where(missing.all(1), 0.0, best)

    return objective
