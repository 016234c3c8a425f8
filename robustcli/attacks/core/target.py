"""Target of a retrieval attack: model, pairs under attack, gallery, and the captions of each image.

Shapes: B images of a call, N images, M captions, D embedding, P captions of an image.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.oracle import TextEncoder
from robustcli.attacks.core.pairs import DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.threat import ThreatModel


class Target:
    """A model, the pairs under attack, the gallery and the threat model; clean features are computed once, when first
    read.
    """

    def __init__(
        self, model: DualEncoderLike, pairs: Pairs, gallery: Gallery | None, threat: ThreatModel | None = None
    ) -> None:
        self.model, self.pairs, self.threat = model, pairs, threat or ThreatModel()
        self.encoder = TextEncoder(model)
        self.owner = pairs.owner.to(pairs.images.device)
        self._gallery = gallery

    @cached_property
    def image_features(self) -> Tensor:
        """(N,D), clean."""
        if self._gallery is not None:
            return self._gallery.image_features[self._gallery.image_rows]
        with torch.no_grad():
            return self.model.encode_image(self.pairs.images)

    @cached_property
    def text_features(self) -> Tensor:
        """(M,D), clean."""
        if self._gallery is not None:
            return self._gallery.text_features[self._gallery.caption_rows]
        return self.encode_text(self.pairs.captions)

    @property
    def has_gallery(self) -> bool:
        """True if the pairs stand before a gallery that was given, as in an evaluation; in training they have none."""
        return self._gallery is not None

    @cached_property
    def gallery(self) -> Gallery:
        """The gallery that was given, or the pairs themselves."""
        if self._gallery is not None:
            return self._gallery
        return Gallery.of_features(self.image_features, self.text_features, self.pairs)

    @cached_property
    def scale(self) -> Tensor:
        """Inverse temperature, without gradients."""
        return self.model.logit_scale.detach()

    @cached_property
    def paired(self) -> "PairedCaptions":
        """Rows of the captions of each image."""
        return PairedCaptions.of(self.owner, len(self.pairs.images))

    def part(self, rows: Tensor) -> tuple["Target", Tensor]:
        """Target of the images ``rows`` (B,) with their captions before the same gallery, and the rows of those
        captions.
        """
        pairs, gallery, new_row = self.pairs, self.gallery, self.owner.new_full((len(self.pairs.images),), -1)
        new_row[rows] = torch.arange(len(rows), device=new_row.device)
        captions = torch.nonzero(new_row[self.owner] >= 0).flatten()
        chosen = Pairs(
            images=pairs.images[rows],
            captions=tuple(pairs.captions[j] for j in captions.tolist()),
            owner=new_row[self.owner[captions]],
            image_ids=pairs.image_ids[rows.to(pairs.image_ids.device)],
            caption_ids=pairs.caption_ids[captions.to(pairs.caption_ids.device)],
        )
        gallery_part = replace(
            gallery,
            image_matches=gallery.image_matches[rows],
            caption_matches=gallery.caption_matches[captions],
            image_rows=gallery.image_rows[rows],
            caption_rows=gallery.caption_rows[captions],
        )
        part = Target(self.model, chosen, gallery_part, self.threat)
        part.encoder = self.encoder
        return part, captions

    def encode_text(self, captions: tuple[str, ...]) -> Tensor:
        """(M,D), cached: captions that a search has met already cost nothing."""
        if not captions:
            return self.pairs.images.new_zeros(0, self.image_features.shape[1])
        return self.encoder.encode(captions)


@dataclass(frozen=True)
class PairedCaptions:
    """Captions of each image: ``table`` (N,P) long, their rows; ``valid`` (N,P) bool, True where it has one."""

    table: Tensor
    valid: Tensor

    @classmethod
    def of(cls, owner: Tensor, n: int) -> "PairedCaptions":
        """From ``owner`` (M,), the row of the image of each caption, of ``n`` images; captions keep their order."""
        counts = torch.bincount(owner, minlength=n)
        order = torch.argsort(owner, stable=True)
        width = int(counts.max()) if len(owner) else 0
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        table = torch.zeros(n, width, dtype=torch.long, device=owner.device)
        table[owner[order], place] = order
        return cls(table, torch.arange(width, device=owner.device)[None, :] < counts[:, None])

    def mean(self, values: Tensor, rows: Tensor) -> Tensor:
        """(B,), from ``values`` (B,P): mean over the captions that an image has; 0 where it has none."""
        return self.sum(values, rows) / self.valid[rows].sum(1).clamp(min=1)

    def sum(self, values: Tensor, rows: Tensor) -> Tensor:
        """(B,), from ``values`` (B,P): sum over the captions that an image has, in float64: in float32 it would depend
        on P, the most captions of any image beside it.
        """
        return torch.where(self.valid[rows], values, 0.0).sum(1, dtype=torch.float64).to(values.dtype)

    def last(self, rows: Tensor) -> Tensor:
        """(B,P) bool: the last caption of each image."""
        return F.one_hot((self.valid[rows].sum(1) - 1).clamp(min=0), self.valid.shape[1]).bool() & self.valid[rows]
