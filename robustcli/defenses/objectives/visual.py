"""Objectives of the image tower alone, told by fixed texts: the captions of a batch, or the texts of classes.

An objective says what it minimises once, in `VisualObjective.step`; `VisualObjective.loss` runs it on pairs of images
and captions, `OnClasses` on a dual encoder that classifies by texts.

Shapes: B images, C channels, D embedding, N patches, Y texts.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import ClassifierAttack, ImageAttack, RetrievalAttack, ThreatModel
from robustcli.attacks.core.class_losses import cross_entropy
from robustcli.data.sampling import ClassBatch, PairBatch
from robustcli.defenses.objectives.classification import ClassObjective, check_bounded
from robustcli.defenses.objectives.pairs import Loss, PairObjective, attack_images, maximising_images
from robustcli.models import Classifier, DualEncoder, ZeroShot
from robustcli.utils.errors import UserError
from robustcli.utils.rowwise import cosines

# Of texts that are no class of an image; finite, so that a divergence meets no difference of infinities.
_NO_CLASS = -1e4


class Tower:
    """Image tower of a dual encoder: images (B,C,H,W) in [0,1] -> embeddings (B,D), not of unit norm.

    Args:
        dual: it.
        coloured: gives images the channels of the tower; None: they have them.
    """

    def __init__(self, dual: DualEncoder, coloured: Loss | None = None) -> None:
        self.dual, self._coloured = dual, coloured or (lambda images: images)

    def __call__(self, images: Tensor) -> Tensor:
        return self.dual.unchecked(self._coloured(images), unit=False)

    def with_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B,D) and those of the patches (B,N,D), see `DualEncoder.encode_patches`."""
        return self.dual.encode_patches(self._coloured(images))


class Texts:
    """Texts that the images of a batch are told by; nothing here has gradients.

    Args:
        read: gives the unit embeddings (Y,D); called if an objective asks for them.
        scale: inverse temperature, a scalar.
        labels: (B,) long, the text of each image.
        matches: (B,B) bool, True where the text of the column's image is true of the row's image.
        others: (B,Y) bool, True for texts beside the label that are true of the image too: no classes of it; None:
            there are none.
    """

    def __init__(
        self,
        read: Callable[[], Tensor],
        *,
        scale: Tensor,
        labels: Tensor,
        matches: Tensor,
        others: Tensor | None = None,
    ) -> None:
        self._read, self.scale, self.labels, self.matches, self.others = read, scale.detach(), labels, matches, others

    @cached_property
    def features(self) -> Tensor:
        """Unit embeddings (Y,D)."""
        with torch.no_grad():
            return self._read()

    @property
    def own(self) -> Tensor:
        """Unit embeddings (B,D) of the text of each image."""
        return self.features[self.labels]

    def logits(self, features: Tensor, scale: float | None = None) -> Tensor:
        """Embeddings (B,D) of images, of any norm -> logits (B,Y), ``scale`` (None: the model's) times cosines."""
        logits = cosines(F.normalize(features, dim=1), self.features) * (self.scale if scale is None else scale)
        return logits if self.others is None else logits.masked_fill(self.others, _NO_CLASS)

    def cross_entropy(self, features: Tensor, scale: float | None = None) -> Tensor:
        """Embeddings (B,D) -> (B,), of the text of each image among all."""
        return F.cross_entropy(self.logits(features, scale), self.labels, reduction="none")

    def attack_loss(self, features: Tensor, scale: float | None = None) -> Tensor:
        """`cross_entropy`, but for an inner search, where it must not saturate: see `unsaturated`."""
        return cross_entropy(self.logits(features, scale), self.labels)


@dataclass(frozen=True, kw_only=True)
class VisualObjective(PairObjective):
    """Training objective of the image tower, against attacks on images; text tower and temperature stay as they are.

    Captions of a batch stand for classes. A caption of another pair that is true of an image too is none of its
    classes.

    Args:
        name: in tables.
    """

    takes_reference: ClassVar[bool] = True

    @property
    def sides(self) -> tuple[str, ...]:
        return ("image",)

    @abstractmethod
    def step(
        self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Callable[[Loss], Tensor]
    ) -> Tensor:
        """Loss of one batch, a scalar with gradients to the weights of ``tower``.

        Args:
            tower, original: as it is trained, and as it was when the training began, without gradients.
            images: (B,C,H,W) in [0,1], clean.
            texts: by which the images are told.
            attacked: an inner loss (B,C,H,W) -> (B,) to the images (B,C,H,W) that maximise it.
        """

    def check_model(self, model: DualEncoder) -> None:
        """Refuse a model that this objective cannot train, before long work.

        Raises:
            UserError: it is such a model.
        """

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
        assert reference is not None
        matches = batch.matches.to(images.device)
        texts = Texts(
            lambda: reference.encode_text(reference.tokenize(batch.captions)),
            scale=reference.logit_scale,
            labels=torch.arange(len(images), device=images.device),
            matches=matches,
            others=matches & ~torch.eye(len(images), dtype=torch.bool, device=images.device),
        )

        def attacked(loss: Loss) -> Tensor:
            return attack_images(model, attack, threat, images, batch, loss, seed=seed)

        return self.step(Tower(model), Tower(reference), images, texts, attacked)


class OnClasses(ClassObjective):
    """An objective of the image tower, for a dual encoder that classifies by texts: the class texts are its texts.

    Args:
        objective: it.
        model: as it is before the training; a copy of its image tower is the original one.

    Raises:
        UserError: a model that is no dual encoder, or that the objective cannot train.
    """

    takes_attack = takes_threat = True

    def __init__(self, objective: VisualObjective, model: Classifier) -> None:
        if not isinstance(model, ZeroShot):
            raise UserError(
                f"objective={objective.name} trains the image tower of a dual encoder, which the model is not: choose "
                "model=tiny or model=open_clip, or take objective=pgd_at."
            )
        if model.prompt is not None:
            raise UserError(
                f"objective={objective.name} trains the image tower, which a learnt prompt leaves as it is: choose "
                "objective=pgd_at, trades or standard, or prompt.length=null."
            )
        objective.check_model(model.dual)
        self.objective, self.name = objective, objective.name
        # A copy: what the training began with, a resumed one too, whose weights are restored later.
        self.original = copy.deepcopy(model.dual).eval().requires_grad_(False)

    def check(self, attack: ClassifierAttack | None, threat: ThreatModel) -> None:
        check_bounded(self.name, attack, threat)
        if not isinstance(attack, ImageAttack):
            raise UserError(
                f"objective={self.name} moves the images by a loss of its own, which {type(attack).__name__} does not "
                "take: choose attack=pgd, attack=apgd or attack=fgsm."
            )
        attack.check(threat)

    def loss(
        self,
        model: Classifier,
        attack: ClassifierAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: ClassBatch,
        *,
        seed: int,
    ) -> Tensor:
        assert isinstance(model, ZeroShot) and isinstance(attack, ImageAttack)
        labels = batch.labels.to(images.device)
        texts = Texts(lambda: model.class_features, scale=model.scale, labels=labels, matches=labels[:, None] == labels)

        def attacked(loss: Loss) -> Tensor:
            return maximising_images(model, attack, threat, images, batch.image_ids, loss, seed=seed)

        tower, original = Tower(model.dual, model.coloured), Tower(self.original, model.coloured)
        return self.objective.step(tower, original, images, texts, attacked)
