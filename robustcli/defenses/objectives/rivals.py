"""The field's robust fine-tunings of an image tower, beside MAT: TeCoA, PMG-AFT, AGFT, Sim-CLIP, AdvFLYP, TGA-ZSR.

Notation: x an image, x' the attacked one, f and f0 the image tower and the original one, z and z0 their unit
embeddings, t_c the unit embedding of text c, t_y that of the image's own, s the inverse temperature;
``p_f(x)`` the softmax over c of ``s z(x) . t_c``.

Shapes: B images, D embedding, N patches, Y texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.defenses.objectives.losses import attention_maps, info_nce, kl_divergence, squared_distance
from robustcli.defenses.objectives.pairs import Loss
from robustcli.defenses.objectives.visual import Texts, Tower, VisualObjective
from robustcli.models import DualEncoder
from robustcli.models.patch_tokens import check_patches
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of, parse_number

Reduction = Literal["sum", "mean"]
Attacked = Callable[[Loss], Tensor]


@dataclass(frozen=True, kw_only=True)
class TeCoA(VisualObjective):
    """``CE(s z(x') . t)`` over all texts, in the inner and the outer loss (Mao et al. 2023).

    Args:
        name: in tables.
    """

    name: str = "tecoa"

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        adversarial = attacked(lambda x: texts.attack_loss(tower(x)))
        return texts.cross_entropy(tower(adversarial)).mean()


@dataclass(frozen=True, kw_only=True)
class PMGAFT(VisualObjective):
    """``CE(x') + a KL(p_f0(x') || p_f(x')) + b KL(p_f(x) || p_f(x'))``; the inner loss is the cross-entropy (PMG-AFT,
    Wang et al. 2024).

    Gradients flow through both sides of the second divergence.

    Args:
        name: in tables.
        original_weight, clean_weight: a and b, 1 each in the published code.
        reduction: ``sum``, the divergences are summed over the batch, as in the published code, so that their weight
            grows with it; or ``mean``.
        compat: as the published code computes: it normalises the text embeddings after they were multiplied by s, so
            that s is 1 in all terms, the inner loss among them.

    Raises:
        UserError: a weight below 0, or another reduction.
    """

    name: str = "pmg_aft"
    original_weight: float = 1.0
    clean_weight: float = 1.0
    reduction: Reduction = "sum"
    compat: bool = False

    def __post_init__(self) -> None:
        _check_weights(self, "original_weight", "clean_weight")
        one_of("reduction", self.reduction, get_args(Reduction), node=self.name)

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        scale = 1.0 if self.compat else None
        adversarial = attacked(lambda x: texts.attack_loss(tower(x), scale))
        features = tower(adversarial)
        logits = texts.logits(features, scale)
        with torch.no_grad():
            of_original = texts.logits(original(adversarial), scale)
        of_clean = texts.logits(tower(images), scale)
        divergence = self.original_weight * kl_divergence(of_original, logits)
        divergence = divergence + self.clean_weight * kl_divergence(of_clean, logits)
        total = divergence.sum() if self.reduction == "sum" else divergence.mean()
        return texts.cross_entropy(features, scale).mean() + total


@dataclass(frozen=True, kw_only=True)
class AGFT(VisualObjective):
    """``CE(softmax(s z(x') . t), softmax(r s z0(x) . t))``: soft labels of the original model on the clean image, which
    the inner loss moves away from too; labels are not read.

    Args:
        name: in tables.
        ratio: r, 0.4 in the paper; below 1 the soft labels are flatter than the answers.
        scale: s in the training, 180 in the paper; None: that of the model.

    Raises:
        UserError: a value that is not above 0.
    """

    name: str = "agft"
    ratio: float = 0.4
    scale: float | None = 180.0

    def __post_init__(self) -> None:
        for key, value in (("ratio", self.ratio), ("scale", self.scale)):
            if value is not None and not parse_number(key, value, node=self.name):
                raise UserError(f"{self.name}.{key} is {value}: expected a number above 0.")

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        with torch.no_grad():
            scale = float(texts.scale) if self.scale is None else self.scale
            target = texts.logits(original(images), self.ratio * scale).softmax(1)

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(texts.logits(tower(x), scale), target, reduction="none")

        return loss(attacked(loss)).mean()


@dataclass(frozen=True, kw_only=True)
class SimCLIP(VisualObjective):
    """``(D(z(x'), sg z0(x)) + D(z0(x), sg z(x'))) / 2``, D the negative cosine and sg without gradients (Sim-CLIP,
    Hossain and Imteaj 2024); the inner loss is ``|f(x') - f0(x)|^2``. Texts are not read.

    z0 is frozen, so that the second half has no gradient: the loss is D, its gradient half of that of D.

    Args:
        name: in tables.
    """

    name: str = "sim_clip"

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        with torch.no_grad():
            target = original(images)
        adversarial = attacked(lambda x: squared_distance(tower(x), target))
        similarity = F.cosine_similarity(tower(adversarial), target, dim=1).mean()
        loss: Tensor = -(similarity + similarity.detach()) / 2
        return loss


@dataclass(frozen=True, kw_only=True)
class AdvFLYP(VisualObjective):
    """``InfoNCE(x', t_y) + a (|z(x') - z0(x')| + |z(x') - z(x)|)
    + b (KL(p_f(x') || p_f0(x')) + KL(p_f(x') || p_f(x)))``; the inner loss is the contrastive one of both directions,
    over the batch.

    Published for pairs of the web, whose captions are the texts. Of classes each image is paired with the text of its
    class, images of one class are no negatives, and the divergences are those over all classes: ours.

    Args:
        name: in tables.
        feature_weight, logit_weight: a and b, 1 each in the published script.

    Raises:
        UserError: a weight below 0.
    """

    name: str = "adv_flyp"
    feature_weight: float = 1.0
    logit_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(self, "feature_weight", "logit_weight")

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        def contrast(features: Tensor) -> Tensor:
            return info_nce(F.normalize(features, dim=1), texts.own, texts.scale, texts.matches)

        adversarial = attacked(lambda x: contrast(tower(x)))
        features = tower(adversarial)
        with torch.no_grad():
            of_original = original(adversarial)
        unit, logits = F.normalize(features, dim=1), texts.logits(features)
        loss = contrast(features)
        for other in (of_original, tower(images)):
            loss = loss + self.feature_weight * (unit - F.normalize(other, dim=1)).norm(dim=1)
            loss = loss + self.logit_weight * kl_divergence(logits, texts.logits(other))
        return loss.mean()


@dataclass(frozen=True, kw_only=True)
class TGAZSR(VisualObjective):
    """``CE(x') + a |A(x') - A0(x)| + b |A(x) - A0(x)|``, A the `attention_maps` of the image's own text and A0 those of
    the original tower, |.| the L2 norm over the map; the inner loss is the cross-entropy (TGA-ZSR, Yu et al. 2024).

    Args:
        name: in tables.
        adversarial_weight, clean_weight: a and b, 0.08 and 0.05 in the paper.
        map_size: pixels a side of the maps, on which the norm depends; 224 in the paper.
        compat: as the published code computes: it normalises the tokens (B,1+N,D) over the tokens, not over D.

    Raises:
        UserError: a weight below 0, a size below 1, or a model without patches.
    """

    name: str = "tga_zsr"
    adversarial_weight: float = 0.08
    clean_weight: float = 0.05
    map_size: int = 224
    compat: bool = False

    def __post_init__(self) -> None:
        _check_weights(self, "adversarial_weight", "clean_weight")
        at_least("map_size", self.map_size, 1, node=self.name)

    def check_model(self, model: DualEncoder) -> None:
        check_patches(model.network)

    def step(self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Attacked) -> Tensor:
        adversarial = attacked(lambda x: texts.attack_loss(tower(x)))
        with torch.no_grad():
            target = self._maps(*original.with_patches(images), texts)
        features, patches = tower.with_patches(adversarial)  # one pass for the answer and its map
        moved = (self._maps(features, patches, texts) - target).flatten(1).norm(dim=1)
        drifted = (self._maps(*tower.with_patches(images), texts) - target).flatten(1).norm(dim=1)
        held = self.adversarial_weight * moved + self.clean_weight * drifted
        loss: Tensor = (texts.cross_entropy(features) + held).mean()
        return loss

    def _maps(self, features: Tensor, patches: Tensor, texts: Texts) -> Tensor:
        if self.compat:
            tokens = torch.cat([features.unsqueeze(1), patches], dim=1)
            return attention_maps(F.normalize(tokens, dim=1)[:, 1:], texts.own, size=self.map_size)
        return attention_maps(F.normalize(patches, dim=2), texts.own, size=self.map_size)


def _check_weights(objective: VisualObjective, *keys: str) -> None:
    for key in keys:
        parse_number(key, getattr(objective, key), node=objective.name)
