"""Training objectives of dual encoders: adversarial image-text pairs, and the contrastive loss on them.

Shapes: B pairs, C channels, D embedding.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from robustcli.attacks import Pairs, RetrievalAttack, ThreatModel
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import Target, text_objective
from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.losses import Directions, Positives, info_nce
from robustcli.models import DualEncoder
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Objective:
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

    name: str
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
        """The attacked sides: of ``image`` and ``text`` those that are True."""
        return tuple(side for side in ("image", "text") if getattr(self, side))

    def check(self, attack: RetrievalAttack | None, threat: ThreatModel) -> None:
        """Refuse an attack, or a threat model, without a side that this defence attacks, before long work.

        Raises:
            UserError: a side is missing; the message names it.
        """
        for side, moves in (("image", threat.moves_images), ("text", threat.moves_texts)):
            if side in self.sides and getattr(attack, side, None) is None:
                raise UserError(
                    f"defense={self.name} attacks the {side}, but attack.{side} is null: choose attack=mat."
                )
            if side in self.sides and not moves:
                raise UserError(
                    f"defense={self.name} attacks the {side}, but the threat model ({threat}) leaves it as it is: "
                    "choose threat=both."
                )
        if attack is not None:
            attack.check(threat)

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
    ) -> Tensor:
        """Loss of one batch, a scalar with gradients to the weights of ``model``.

        Args:
            attack, threat: whose image and text parts attack the sides of this objective, and how far.
            images: (B,C,H,W) in [0,1], those of ``batch``.
            batch: captions (B), names and matches (B,B) of the pairs.
            seed: names the draws of this step.
        """
        captions = self._attack_captions(model, attack, threat, images, batch, seed) if self.text else batch.captions
        # Serves the inner attack too: a third of a step saved.
        text_features = model.encode_text(model.tokenize(captions))
        adversarial = images
        if self.image:
            # Detached: the inner maximisation differentiates by the image alone.
            adversarial = self._attack_images(model, attack, threat, images, text_features.detach(), batch, seed)
        loss = self._contrast(model, model.encode_image(adversarial), text_features, batch).mean()
        if self.clean_weight == 0:
            return loss
        clean_text = model.encode_text(model.tokenize(batch.captions))
        clean = self._contrast(model, model.encode_image(images), clean_text, batch).mean()
        return (1 - self.clean_weight) * loss + self.clean_weight * clean

    def _attack_captions(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        seed: int,
    ) -> tuple[str, ...]:
        """The captions with the attacked share of them edited; which pairs are attacked is drawn anew each step."""
        assert attack is not None and attack.text is not None
        share = round(self.attacked_captions * len(images))
        if not share:
            return batch.captions
        rows = torch.randperm(len(images), generator=generator(seed, "attacked captions"))[:share].sort().values
        pairs = Pairs(
            images=images[rows.to(images.device)],
            captions=tuple(batch.captions[i] for i in rows.tolist()),
            owner=torch.arange(share),
            image_ids=batch.image_ids[rows],
            caption_ids=_of_this_step(batch.caption_ids[rows], seed),
        )
        with frozen(model):
            objective = text_objective(attack.text.objective, Target(model, pairs, None))
            adversarial = attack.text.maximise(model, objective, pairs.captions, pairs.caption_ids, threat)
        captions = list(batch.captions)
        for row, caption in zip(rows.tolist(), adversarial, strict=True):
            captions[row] = caption
        return tuple(captions)

    def _attack_images(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        text_features: Tensor,
        batch: PairBatch,
        seed: int,
    ) -> Tensor:
        """Adversarial images against the captions as they are now; the inner loss is the outer one, over all rows."""
        assert attack is not None and attack.image is not None

        # An evaluation is one forward pass of the image tower; with its gradient, one backward pass more.
        def objective(x_adv: Tensor, rows: Tensor) -> Tensor:
            if len(rows) != len(images):
                raise ValueError(f"the loss of a batch reads all of it: asked for {len(rows)} of {len(images)} images")
            return self._contrast(model, model.encode_image(x_adv), text_features, batch)

        with frozen(model):
            return attack.image.maximise(objective, images, _of_this_step(batch.image_ids, seed), threat)

    def _contrast(self, model: DualEncoder, image_features: Tensor, text_features: Tensor, batch: PairBatch) -> Tensor:
        matches = batch.matches.to(image_features.device)
        return info_nce(
            image_features,
            text_features,
            model.logit_scale,
            matches,
            positives=self.positives,
            directions=self.directions,
        )


def _of_this_step(ids: Tensor, seed: int) -> Tensor:
    """Ids (B,) that name the draws of this step alone; the shift keeps the sum of 63-bit seed and id within int64."""
    return ids + (seed >> 2)
