"""MMCoA, contrastive training on pairs of which one side is attacked (Zhou et al. 2024).

Shapes: B pairs, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.losses import Positives, info_nce, rows_of_info_nce
from robustcli.defenses.objectives.pairs import PairObjective, View, attack_captions, attack_images
from robustcli.models import DualEncoder
from robustcli.utils.numbers import parse_number


@dataclass(frozen=True, kw_only=True)
class MMCoA(PairObjective):
    """``text_weight (CE(x -> t') + CE(t' -> x)) + image_weight (CE(x' -> t) + CE(t -> x'))`` over the batch.

    Both attacks are independent: the images move away from the clean captions, and the captions are searched by the
    text attack's own objective, ``drift`` in the paper. An adversarial image is never paired with an adversarial
    caption, which is the difference to MAT.

    Args:
        name: in tables.
        text_weight, image_weight: of both losses; 0.5 each in the paper.
        positives: treatment of the other true pairs of a batch, see `info_nce`; the published code takes ``diagonal``.

    Raises:
        UserError: a weight below 0.
    """

    name: str = "mmcoa"
    text_weight: float = 0.5
    image_weight: float = 0.5
    positives: Positives = "mask"

    def __post_init__(self) -> None:
        for key in ("text_weight", "image_weight"):
            parse_number(key, getattr(self, key), node="defense")

    @property
    def sides(self) -> tuple[str, ...]:
        return ("image", "text")

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
        clean_text = model.encode_text(model.tokenize(batch.captions))

        def contrast(image_features: Tensor, text_features: Tensor) -> Tensor:
            return self._contrast(model, image_features, text_features, batch)

        captions, adversarial = self._attacked(model, attack, threat, images, batch, clean_text.detach(), seed)
        of_text = contrast(model.encode_image(images), model.encode_text(model.tokenize(captions))).mean()
        of_images = contrast(model.encode_image(adversarial), clean_text).mean()
        return self.text_weight * of_text + self.image_weight * of_images

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
        with torch.no_grad():
            fixed = model.encode_text(model.tokenize(batch.captions))
        captions, adversarial = self._attacked(model, attack, threat, images, batch, fixed, seed)
        return View(images, captions, self.text_weight), View(adversarial, batch.captions, self.image_weight)

    def contrast(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        matches: tuple[Tensor, Tensor],
        *,
        rows: slice,
    ) -> Tensor:
        loss = rows_of_info_nce(
            image_features, text_features, logit_scale, matches, rows=rows, positives=self.positives
        )
        return 2 * loss

    def _attacked(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        fixed: Tensor,
        seed: int,
    ) -> tuple[tuple[str, ...], Tensor]:
        """Attacked captions, and images moved away from the clean ones, whose features are ``fixed`` (B,D)."""
        captions = attack_captions(model, attack, threat, images, batch, seed=seed)

        def loss(x: Tensor) -> Tensor:
            return self._contrast(model, model.encode_image(x), fixed, batch)

        return captions, attack_images(model, attack, threat, images, batch, loss, seed=seed)

    def _contrast(self, model: DualEncoder, image_features: Tensor, text_features: Tensor, batch: PairBatch) -> Tensor:
        matches = batch.matches.to(image_features.device)
        # Twice the mean of both directions is their sum.
        return 2 * info_nce(image_features, text_features, model.logit_scale, matches, positives=self.positives)
