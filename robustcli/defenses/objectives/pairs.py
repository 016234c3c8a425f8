"""The interface of training objectives of dual encoders, and the inner attacks that they share.

Shapes: B pairs, S attacked pairs, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustcli.attacks import ImageAttack, Pairs, RetrievalAttack, ThreatModel
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import Target, text_objective
from robustcli.attacks.core.oracle import TextObjective
from robustcli.data.sampling import PairBatch
from robustcli.models import DualEncoder
from robustcli.utils.errors import UserError

Loss = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> (B,), one forward pass
# Attacks and threat models of the command line that reach the sides of an objective, and no other.
_REMEDIES = {
    (): ("attack=mat", "threat=both"),
    ("image",): ("attack=pgd", "threat=image"),
    ("text",): ("attack=words or attack=characters", "threat=text or threat=characters"),
    ("image", "text"): ("attack=mat", "threat=both"),
}


@dataclass(frozen=True)
class View:
    """Pairs that a contrastive loss compares: images (B,C,H,W) in [0,1], their B captions, attacked or clean, and the
    weight of that loss.
    """

    images: Tensor
    captions: tuple[str, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class PairObjective(ABC):
    """Training objective of a dual encoder.

    Args:
        name: in tables.

    Attributes:
        takes_reference: True if its loss reads the weights that the training began with.
    """

    takes_reference: ClassVar[bool] = False

    name: str

    @property
    @abstractmethod
    def sides(self) -> tuple[str, ...]:
        """The attacked sides, of ``image`` and ``text``."""

    @abstractmethod
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
        """Loss of one batch, a scalar with gradients to the weights of ``model``.

        Args:
            attack, threat: whose image and text parts attack the sides of this objective, and how far.
            images: (B,C,H,W) in [0,1], those of ``batch``.
            batch: captions (B), names and matches (B,B) of the pairs.
            seed: names the draws of this step.
            reference: the model as it was when the training began, in eval mode, where `takes_reference`.
        """

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
        """The attacked pairs whose weighted contrastive losses are the `loss` of a batch, where it is nothing else; so
        `contrast` can have negatives beyond the batch. Arguments as those of `loss`.
        """
        raise NotImplementedError

    def contrast(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        matches: tuple[Tensor, Tensor],
        *,
        rows: slice,
    ) -> Tensor:
        """The contrastive loss of each of the pairs ``rows`` among N, (B,); arguments as of `rows_of_info_nce`."""
        raise NotImplementedError

    def check_negatives(self) -> None:
        """Refuse negatives beyond the batch where the loss is no contrastive one alone, before long work.

        Raises:
            UserError: it is not.
        """
        if type(self).views is PairObjective.views:
            raise UserError(
                "trainer.negatives=step gathers the negatives of a loss that is contrastive alone, which that of "
                f"defense={self.name} is not: choose trainer.negatives=micro, or defense=mat, mmcoa, tecoa, image, "
                "text or clean."
            )

    def check(self, attack: RetrievalAttack | None, threat: ThreatModel) -> None:
        """Refuse an attack, or a threat model, without a side that this defence attacks, before long work.

        Raises:
            UserError: a side is missing; the message names it.
        """
        attacks, threats = _REMEDIES[self.sides]
        for side, moves in (("image", threat.moves_images), ("text", threat.moves_texts)):
            if side in self.sides and getattr(attack, side, None) is None:
                raise UserError(f"defense={self.name} attacks the {side}, but attack.{side} is null: choose {attacks}.")
            if side in self.sides and not moves:
                raise UserError(
                    f"defense={self.name} attacks the {side}, but the threat model ({threat}) leaves it as it is: "
                    f"choose {threats}."
                )
        if attack is not None:
            attack.check(threat)

    def check_batch(self, batch_size: int) -> None:  # noqa: B027, objects to nothing
        """Refuse a batch that is too small for the shares of this objective.

        Raises:
            UserError: it is; the message names the smallest that will do.
        """


def attack_captions(
    model: DualEncoder,
    attack: RetrievalAttack | None,
    threat: ThreatModel,
    images: Tensor,
    batch: PairBatch,
    *,
    seed: int,
    rows: Tensor | None = None,
    objective: TextObjective | None = None,
) -> tuple[str, ...]:
    """The captions of a batch, those of the pairs ``rows`` edited against the clean images.

    Args:
        rows: (S,) long, ascending; None: all.
        objective: loss of captions; None: the text attack's own.
    """
    assert attack is not None and attack.text is not None
    rows = torch.arange(len(images)) if rows is None else rows
    pairs = Pairs(
        images=images[rows.to(images.device)],
        captions=tuple(batch.captions[i] for i in rows.tolist()),
        owner=torch.arange(len(rows)),
        image_ids=batch.image_ids[rows],
        caption_ids=_of_this_step(batch.caption_ids[rows], seed),
    )
    with frozen(model):
        target = Target(model, pairs, None)
        objective = objective or text_objective(attack.text.objective, target, seed=attack.text.seed)
        adversarial = attack.text.maximise(model, objective, pairs.captions, pairs.caption_ids, threat)
    captions = list(batch.captions)
    for row, caption in zip(rows.tolist(), adversarial, strict=True):
        captions[row] = caption
    return tuple(captions)


def attack_images(
    model: DualEncoder,
    attack: RetrievalAttack | None,
    threat: ThreatModel,
    images: Tensor,
    batch: PairBatch,
    loss: Loss,
    *,
    seed: int,
) -> Tensor:
    """Images (B,C,H,W) that maximise ``loss``, see `maximising_images`, by the image part of ``attack``."""
    assert attack is not None and attack.image is not None
    return maximising_images(model, attack.image, threat, images, batch.image_ids, loss, seed=seed)


def maximising_images(
    model: nn.Module,
    attack: ImageAttack,
    threat: ThreatModel,
    images: Tensor,
    image_ids: Tensor,
    loss: Loss,
    *,
    seed: int,
) -> Tensor:
    """Images (B,C,H,W) within the threat model that maximise ``loss``, a forward and a backward pass of the image tower
    a step; ``model``, which is behind the loss, is frozen meanwhile.

    Args:
        image_ids: (B,) long; with ``seed`` they name the draws of this step.
    """

    def objective(x_adv: Tensor, rows: Tensor) -> Tensor:
        if len(rows) != len(images):
            raise ValueError(f"the loss of a batch reads all of it: asked for {len(rows)} of {len(images)} images")
        return loss(x_adv)

    with frozen(model):
        return attack.maximise(objective, images, _of_this_step(image_ids, seed), threat)


def _of_this_step(ids: Tensor, seed: int) -> Tensor:
    """Ids (B,) that name the draws of this step alone; the shift keeps the sum of 63-bit seed and id within int64."""
    return ids + (seed >> 2)
