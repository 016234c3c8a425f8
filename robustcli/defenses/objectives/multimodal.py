"""Training objectives of dual encoders: adversarial image-text pairs, and the contrastive loss on them.

Shapes: B pairs, C channels, D embedding.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.losses import Directions, Positives, info_nce, rows_of_info_nce
from robustcli.defenses.objectives.pairs import PairObjective, View, attack_captions, attack_images
from robustcli.models import DualEncoder
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Objective(PairObjective):
    """Training objective of a dual encoder; MAT, TeCoA, text-only and clean fine-tuning differ in these fields alone.

    The inner attack is sequential, one pass, text first and then the image against the attacked caption, with frozen
    weights; the outer loss is the contrastive one on the attacked pair (Waseda et al. 2026, section 3.2 as restated by
    its authors).

    Args:
        name: in tables.
        image, text: the sides that are attacked; neither is clean fine-tuning.
        positives: treatment of the other true pairs of a batch, see `info_nce`.
        directions: ``image_to_text`` takes the captions as classes (TeCoA).
        attacked_captions: share of the pairs whose caption is attacked, where ``text`` is set; the others keep theirs.
        clean_weight: share in [0,1] of the loss on the clean pair, at the price of a second pass; 0 in MAT.

    Raises:
        UserError: an unknown choice, or a share out of range.
    """

    image: bool
    text: bool
    positives: Positives = "mask"
    directions: Directions = "both"
    attacked_captions: float = 1.0
    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        for key, value, known in (
            ("positives", self.positives, Positives),
            ("directions", self.directions, Directions),
        ):
            if value not in get_args(known):
                raise UserError(f"defense.{key} is {value!r}: choose one of {', '.join(get_args(known))}.")
        for key, share in (("attacked_captions", self.attacked_captions), ("clean_weight", self.clean_weight)):
            if not 0 <= share <= 1:
                raise UserError(f"defense.{key} is {share}: it is a share, between 0 and 1.")

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(side for side in ("image", "text") if getattr(self, side))

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch so small that the attacked share of its captions rounds to none.

        Raises:
            UserError: the share is above 0, and yet no caption would ever be attacked.
        """
        if self.text and self.attacked_captions > 0 and not round(self.attacked_captions * batch_size):
            least = math.ceil(0.51 / self.attacked_captions)
            raise UserError(
                f"defense.attacked_captions is {self.attacked_captions:g}, which of a batch of {batch_size} is no "
                f"caption at all: set trainer.batch_size={least} or more, or a larger share; 0 attacks none."
            )

    def loss(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        *,
        seed: int,
        reference: DualEncoder | None = None,
    ) -> Tensor:
        captions = self._attacked_captions(model, attack, threat, images, batch, seed)
        # Serves the inner attack too: a third of a step saved.
        text_features = model.encode_text(model.tokenize(captions))
        adversarial = self._attacked_images(model, attack, threat, images, batch, text_features.detach(), seed)
        loss = self._contrast(model, adversarial, text_features, batch).mean()
        if self.clean_weight == 0:
            return loss
        clean_text = model.encode_text(model.tokenize(batch.captions))
        clean = self._contrast(model, images, clean_text, batch).mean()
        return (1 - self.clean_weight) * loss + self.clean_weight * clean

    def views(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        *,
        seed: int,
    ) -> tuple[View, ...]:
        captions, adversarial = self._attacked_captions(model, attack, threat, images, batch, seed), images
        if self.image:
            with torch.no_grad():
                fixed = model.encode_text(model.tokenize(captions))
            adversarial = self._attacked_images(model, attack, threat, images, batch, fixed, seed)
        attacked = View(adversarial, captions, 1 - self.clean_weight)
        return (attacked, View(images, batch.captions, self.clean_weight)) if self.clean_weight else (attacked,)

    def contrast(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        matches: tuple[Tensor, Tensor],
        *,
        rows: slice,
    ) -> Tensor:
        return rows_of_info_nce(
            image_features,
            text_features,
            logit_scale,
            matches,
            rows=rows,
            positives=self.positives,
            directions=self.directions,
        )

    def _attacked_captions(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        seed: int,
    ) -> tuple[str, ...]:
        if not self.text or (rows := self._attacked_rows(len(images), seed)) is None:
            return batch.captions
        return attack_captions(model, attack, threat, images, batch, seed=seed, rows=rows)

    def _attacked_images(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        fixed: Tensor,
        seed: int,
    ) -> Tensor:
        """Images that raise the contrastive loss with the text features ``fixed`` (B,D), which have no graph: the inner
        maximisation differentiates by the image alone. The inner loss is the outer one, within the batch.
        """
        if not self.image:
            return images

        def loss(x: Tensor) -> Tensor:
            return self._contrast(model, x, fixed, batch)

        return attack_images(model, attack, threat, images, batch, loss, seed=seed)

    def _attacked_rows(self, size: int, seed: int) -> Tensor | None:
        """The attacked share of the pairs, drawn anew each step; None for no pair at all."""
        share = round(self.attacked_captions * size)
        if not share:
            return None
        return torch.randperm(size, generator=generator(seed, "attacked captions"))[:share].sort().values

    def _contrast(self, model: DualEncoder, images: Tensor, text_features: Tensor, batch: PairBatch) -> Tensor:
        image_features = model.encode_image(images)
        return info_nce(
            image_features,
            text_features,
            model.logit_scale,
            batch.matches.to(image_features.device),
            positives=self.positives,
            directions=self.directions,
        )
