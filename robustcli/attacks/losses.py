"""What an attack raises: losses over a gallery, and the similarities that the field attacks. All are per sample.

A loss of a sample reads its own attacked item and clean items of others, so that it does not depend on its batch;
`infonce`, the loss of training, is the one exception and says so.

Shapes: B images asked for, N images, M captions, K candidates, D embedding, G gallery images, H gallery captions, P
captions of an image.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.oracle import ImageObjective, TextEncoder, TextObjective
from robustcli.attacks.pairs import DualEncoderLike, Gallery, Pairs
from robustcli.errors import UserError

IMAGE_LOSSES = ("gallery", "own_pair", "drift", "infonce")
TEXT_LOSSES = ("guided", "drift", "gallery")
_NEVER = -1e30  # the logit of what is left out; the gradient of a log-sum over nothing but -inf is NaN


class Target:
    """A model, the pairs under attack and the gallery; clean features are computed once, and only where a loss asks
    for them.
    """

    def __init__(self, model: DualEncoderLike, pairs: Pairs, gallery: Gallery | None) -> None:
        self.model, self.pairs = model, pairs
        self.encoder = TextEncoder(model)
        self.owner = pairs.owner.to(pairs.images.device)
        self._given = gallery

    @cached_property
    def image_features(self) -> Tensor:
        """(N,D), clean."""
        if self._given is not None:
            return self._given.image_features[self._given.image_rows]
        with torch.no_grad():
            return self.model.encode_image(self.pairs.images)

    @cached_property
    def text_features(self) -> Tensor:
        """(M,D), clean."""
        if self._given is not None:
            return self._given.text_features[self._given.caption_rows]
        return self.encode_text(self.pairs.captions)

    @cached_property
    def gallery(self) -> Gallery:
        """The one given, or the pairs themselves."""
        if self._given is not None:
            return self._given
        return Gallery.of_features(self.image_features, self.text_features, self.pairs)

    @cached_property
    def scale(self) -> Tensor:
        """Inverse temperature, without gradients."""
        return self.model.logit_scale.detach()

    @cached_property
    def own(self) -> "OwnCaptions":
        """Which captions belong to which image."""
        return OwnCaptions.of(self.owner, len(self.pairs.images))

    def encode_text(self, captions: tuple[str, ...]) -> Tensor:
        """(M,D); features that a search has met already are reused."""
        if not captions:
            return self.pairs.images.new_zeros(0, self.image_features.shape[1])
        return self.encoder.encode(captions)


@dataclass(frozen=True)
class OwnCaptions:
    """``table`` (N,P) long, the rows of each image's captions; ``valid`` (N,P) bool, False where an image has fewer
    than P.
    """

    table: Tensor
    valid: Tensor

    @classmethod
    def of(cls, owner: Tensor, n: int) -> "OwnCaptions":
        """From the owner of each caption; the captions of an image keep their order."""
        counts = torch.bincount(owner, minlength=n)
        order = torch.argsort(owner, stable=True)
        width = int(counts.max()) if len(owner) else 0
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        table = torch.zeros(n, width, dtype=torch.long, device=owner.device)
        table[owner[order], place] = order
        return cls(table, torch.arange(width, device=owner.device)[None, :] < counts[:, None])

    def mean(self, values: Tensor, rows: Tensor) -> Tensor:
        """(B,P) -> (B,): mean over the captions that an image has; 0 where it has none."""
        valid = self.valid[rows]
        return torch.where(valid, values, 0.0).sum(1) / valid.sum(1).clamp(min=1)

    def last(self, rows: Tensor) -> Tensor:
        """(B,P) bool: the last caption of each image."""
        return F.one_hot((self.valid[rows].sum(1) - 1).clamp(min=0), self.valid.shape[1]).bool() & self.valid[rows]


def image_objective(loss: str, target: Target, text_features: Tensor | None = None) -> ImageObjective:
    """The loss called ``loss`` of the images of ``target``; ``text_features`` (M,D): attacked captions, default the
    clean ones.
    """
    makers = {"gallery": _over_gallery, "own_pair": _own_pair, "drift": _image_drift, "infonce": _infonce}
    return makers[known_loss(loss, IMAGE_LOSSES, "attack.image.loss")](target, text_features)


def text_objective(objective: str, target: Target, image_features: Tensor | None = None) -> TextObjective:
    """The loss called ``objective`` of the captions of ``target``; ``image_features`` (N,D): attacked images,
    default the clean ones.
    """
    makers = {"guided": guided, "drift": text_drift, "gallery": _caption_over_gallery}
    return makers[known_loss(objective, TEXT_LOSSES, "attack.text.objective")](target, image_features)


def known_loss(name: str, known: tuple[str, ...], key: str) -> str:
    """``name``, or a `UserError` that lists what is known."""
    if name not in known:
        raise UserError(f"{key} is {name!r}: choose one of {', '.join(known)}.")
    return name


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of softmaxed embeddings, (...,D) -> (...), in float64: the values are 1e-6 to 1e-3 (Zhang
    et al. 2022).
    """
    log_p, log_q = F.log_softmax(first.double(), -1), F.log_softmax(second.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_mass(logits: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Log of the summed exponentials of the chosen entries; where none is, next to no mass and a gradient that is no
    NaN.
    """
    return logits.masked_fill(~chosen, _NEVER).logsumexp(dim)


def _own_similarities(features: Tensor, text_features: Tensor, table: Tensor) -> Tensor:
    """(B,D), (M,D), (B,P) -> (B,P) cosines of each image with its captions."""
    return torch.einsum("bd,bpd->bp", features, text_features[table])


def _over_gallery(target: Target, text_features: Tensor | None) -> ImageObjective:
    """Cross-entropy of the image over all captions, plus the mean over its captions of theirs over all images.

    Positives are all that is true: -log of their summed share. Of the gallery's other images and captions the clean
        features count.
    """
    gallery, own, scale = target.gallery, target.own, target.scale
    attacked = target.text_features if text_features is None else text_features
    rest, rest_true = _images_without_own(target, attacked)

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        features = target.model.encode_image(images)
        table, valid = own.table[rows], own.valid[rows]
        pairs = scale * _own_similarities(features, attacked, table)
        logits = scale * features @ gallery.text_features.T
        if text_features is not None:
            places = torch.nonzero(valid, as_tuple=True)
            logits = logits.index_put((places[0], gallery.caption_rows[table[places]]), pairs[places])
        to_text = logits.logsumexp(1) - _log_mass(logits, gallery.image_matches[rows], 1)
        to_image = torch.logaddexp(rest[table], pairs) - torch.logaddexp(rest_true[table], pairs)
        return to_text + own.mean(to_image, rows)

    return objective


def _images_without_own(target: Target, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) twice: log of the summed exponentials over all gallery images but a caption's own, and over the true ones
    of them.
    """
    gallery = target.gallery
    logits = target.scale * text_features @ gallery.image_features.T
    logits = logits.scatter(1, gallery.image_rows[target.owner][:, None], _NEVER)
    return logits.logsumexp(1), _log_mass(logits, gallery.caption_matches, 1)


def _own_pair(target: Target, text_features: Tensor | None) -> ImageObjective:
    """Minus the mean cosine to the own captions, what SGA lowers (Lu et al. 2023); it knows no negatives."""
    own, texts = target.own, target.text_features if text_features is None else text_features

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        similarities = _own_similarities(target.model.encode_image(images), texts, own.table[rows])
        return -own.mean(similarities, rows)

    return objective


def _image_drift(target: Target, _text_features: Tensor | None) -> ImageObjective:
    """KL of the attacked to the clean image; its gradient is zero at the clean image, so it needs a random start."""

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return divergence(target.model.encode_image(images), target.image_features[rows])

    return objective


def _infonce(target: Target, text_features: Tensor | None) -> ImageObjective:
    """The batch's own contrastive loss, all images moving at once: that of training, where other true pairs are no
    negatives.

    Row ``i`` is the mean over the captions of image ``i`` of both directions' cross-entropies; their sum is what
    moves. It reads the whole batch, so it must be asked for all rows at once.
    """
    texts = target.text_features if text_features is None else text_features
    matches, owner, own, scale = target.pairs.matches(), target.owner, target.own, target.scale
    columns = torch.arange(len(owner), device=owner.device)

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        if len(rows) != len(matches):
            raise ValueError(f"infonce reads the whole batch: asked for {len(rows)} of {len(matches)} images")
        logits = scale * target.model.encode_image(images) @ texts.T
        pairs = logits[owner, columns]
        false_texts, false_images = _log_mass(logits, ~matches, 1), _log_mass(logits, ~matches, 0)
        loss = F.softplus(false_texts[owner] - pairs) + F.softplus(false_images - pairs)
        return own.mean(loss[own.table], rows) / 2

    return objective


def guided(target: Target, image_features: Tensor | None) -> TextObjective:
    """Minus the cosine to the own image (Lu et al. 2023)."""
    images = target.image_features if image_features is None else image_features

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        return -(features * images[target.owner[rows]]).sum(1)

    return objective


def text_drift(target: Target, _image_features: Tensor | None) -> TextObjective:
    """KL of the clean caption to the attacked one (Zhang et al. 2022); it needs no image."""
    return lambda features, rows: divergence(target.text_features[rows], features)


def _caption_over_gallery(target: Target, image_features: Tensor | None) -> TextObjective:
    """Cross-entropy of the caption over all images, every true one a positive; the own image attacked, where it is
    given.
    """
    gallery, scale = target.gallery, target.scale
    own_rows = gallery.image_rows[target.owner]

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        logits = scale * features @ gallery.image_features.T
        if image_features is not None:
            own = scale * (features * image_features[target.owner[rows]]).sum(1, keepdim=True)
            logits = logits.scatter(1, own_rows[rows][:, None], own)
        return logits.logsumexp(1) - _log_mass(logits, gallery.caption_matches[rows], 1)

    return objective
