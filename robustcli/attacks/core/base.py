"""The base classes of all attacks: a subclass supplies the search, the base projects, audits and judges every result
itself.

Shapes: B batch, C channels, N images, M captions, K candidates, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.classifier import Attack, ClassifierAttack
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import ImageObjective, ImageOracle, LogitOracle, Meter, TextEncoder, TextObjective
from robustcli.attacks.core.pairs import (
    Adversarial,
    DualEncoderLike,
    Gallery,
    ImageAdversarial,
    Pairs,
    check_images,
)
from robustcli.attacks.core.success import judge, worst_of
from robustcli.attacks.core.threat import L2, Characters, Eps, Linf, Words, ball
from robustcli.attacks.image.losses import class_objective
from robustcli.attacks.multimodal.losses import (
    IMAGE_LOSSES,
    TEXT_LOSSES,
    Target,
    image_objective,
    known_loss,
    text_objective,
)
from robustcli.attacks.text.constraints import Constraint, audit_constraints
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

__all__ = [
    "Adversarial",
    "Attack",
    "ClassifierAttack",
    "DualEncoderLike",
    "Gallery",
    "ImageAdversarial",
    "ImageAttack",
    "Pairs",
    "RetrievalAttack",
    "TextAttack",
    "frozen",
]


class ImageAttack(ClassifierAttack, ABC):
    """Moves images within a ball to raise a loss, be it of a dual encoder or of a classifier.

    Args:
        norm: ``linf`` or ``l2``.
        eps: radius in units of [0,1] pixels, such as ``"4/255"``.
        loss: what is raised: ``gallery`` (the cross-entropy over all captions of a gallery, or over the classes),
            ``margin`` and ``dlr``; against a dual encoder also ``own_pair``, ``drift`` and ``infonce``; see `losses`
            and `class_losses`.
        early_stop: on a classifier, leave a sample alone as soon as it is fooled, which costs nothing in robust
            accuracy; never done where the model's answers are drawn.
        seed: of the run; a sample's draws depend on it and on the sample's id alone.

    Raises:
        UserError: an unknown norm or loss, or an impossible eps.
    """

    def __init__(
        self, *, norm: str = "linf", eps: Eps = "4/255", loss: str = "gallery", early_stop: bool = True, seed: int = 0
    ) -> None:
        self.budget: Linf | L2 = ball(norm, eps)
        self.norm, self.eps, self.seed, self.early_stop = norm, self.budget.eps, seed, early_stop
        self.loss = known_loss(loss, IMAGE_LOSSES, "attack.image.loss")

    @abstractmethod
    def find(self, oracle: ImageOracle, images: Tensor, sample_ids: Sequence[int], start: Tensor | None) -> Tensor:
        """The attack's own part: images (N,C,H,W) of higher loss; row ``i`` of ``images`` is row ``i`` of the
        oracle.
        """

    def maximise(
        self,
        objective: ImageObjective,
        images: Tensor,
        sample_ids: Tensor,
        *,
        start: Tensor | None = None,
        meter: Meter | None = None,
    ) -> Tensor:
        """Images within the budget that raise ``objective``; the model behind it should be `frozen`.

        Args:
            objective: images (B,C,H,W) and their rows (B,) in ``images`` -> (B,) losses.
            images: (N,C,H,W) float32 in [0,1]; left as they are.
            sample_ids: (N,) long, names of the samples' draws.
            start: (N,C,H,W), the first iterate in place of a random start; it is projected.
            meter: is told what was spent.

        Raises:
            ValueError: images out of range, or of the wrong shape or dtype.
            RuntimeError: the search changed its input, or put out a NaN: a fault of the attack.
        """
        check_images(images)
        if len(sample_ids) != len(images):
            raise ValueError(f"{len(sample_ids)} sample_ids for {len(images)} images")
        if self.budget.eps == 0 or not len(images):
            return images.clone()
        clean, oracle = images.detach().clone(), ImageOracle(objective, meter or Meter.of(len(images)))
        found = self.find(oracle, clean, sample_ids.tolist(), start)
        if not torch.equal(clean, images):
            raise RuntimeError(f"{type(self).__name__} wrote into its input")
        found = self.budget.settle(found.detach(), clean)
        self.budget.audit(found, clean)
        return found

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        objective = class_objective(self.loss, oracle.model, labels, tell=self.early_stop and not oracle.randomised)
        return self.maximise(objective, images, sample_ids, meter=oracle.meter)


class TextAttack(Attack, ABC):
    """Edits captions within a budget of words or of characters, counted on the caption that comes out.

    Args:
        budget: the edits that are allowed; a subclass takes their number as ``max_words`` or ``max_characters``.
        objective: what is raised against a dual encoder: ``guided``, ``drift``, ``gallery`` or ``margin``; see
            `losses`.
        constraints: what an edited caption must keep, beside the budget; see `constraints`.
        seed: of the run; a caption's draws, if a search makes any, depend on it and on the caption's id alone.
    """

    def __init__(
        self,
        *,
        budget: Words | Characters,
        objective: str = "guided",
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
    ) -> None:
        self.budget, self.constraints, self.seed = budget, tuple(constraints), seed
        self.objective = known_loss(objective, TEXT_LOSSES, "attack.text.objective")

    @abstractmethod
    def find(
        self, encoder: TextEncoder, objective: TextObjective, captions: Sequence[str], caption_ids: Sequence[int]
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        """The attack's own part: M captions of higher loss, and the forward and backward passes for each, (M,) long
        on the CPU.
        """

    def maximise(
        self,
        model: DualEncoderLike,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Tensor,
        *,
        encoder: TextEncoder | None = None,
        owner: Tensor | None = None,
        meter: Meter | None = None,
    ) -> tuple[str, ...]:
        """Captions within the budget that raise ``objective``; ``model`` should be `frozen`.

        Args:
            objective: features (K,D) and the captions' rows (K,) -> (K,) losses.
            encoder: features that were computed already, of the same model and weights.
            owner, meter: the image of each caption (M,), and who is told what was spent on it.

        Raises:
            RuntimeError: an edit beyond the budget or against a constraint: a fault of the attack.
        """
        if self.budget.n == 0 or not captions:
            return tuple(captions)
        encoder = encoder or TextEncoder(model)
        found, queries, gradients = self.find(encoder, objective, captions, caption_ids.tolist())
        self.budget.audit(found, captions)
        audit_constraints(self.constraints, captions, found, encoder)
        if meter is not None and owner is not None:
            meter.add_texts(queries, gradients, owner)
        return tuple(found)


class RetrievalAttack(Attack, ABC):
    """Attacks images, captions or both of a dual encoder; either part may be None, and that side then stays clean."""

    def __init__(self, *, image: ImageAttack | None = None, text: TextAttack | None = None, seed: int = 0) -> None:
        if image is None and text is None:
            raise UserError("attack.image and attack.text are both null: give at least one of them.")
        self.image, self.text, self.seed = image, text, seed

    @abstractmethod
    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        """The attack's own part, from `attack_images` and `attack_captions`: images (N,C,H,W) and M captions."""

    def perturb(
        self, model: DualEncoderLike, pairs: Pairs, gallery: Gallery | None = None
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Attacked images and captions, audited but not judged (training needs no more).

        Args:
            gallery: what queries are ranked against; None: the pairs themselves.

        Raises:
            RuntimeError: a result beyond the budget: a fault of the attack.
        """
        with frozen(model):
            images, captions = self.find(Target(model, pairs, gallery), Meter.of(len(pairs.images)))
        self._audit(pairs, images, captions)
        return images, captions

    def __call__(self, model: DualEncoderLike, pairs: Pairs, gallery: Gallery | None = None) -> Adversarial:
        """The worst of `variants` for each query."""
        return worst_of(list(self.variants(model, pairs, gallery).values()))

    def variants(
        self, model: DualEncoderLike, pairs: Pairs, gallery: Gallery | None = None
    ) -> Mapping[str, Adversarial]:
        """What an attacker may choose from for each query, by name; most attacks put out one, called "".

        Every query is ranked again from the images and strings that came out. The costs of all stand with the first.
        """
        with frozen(model), torch.no_grad():
            torch.manual_seed(derive_seed(self.seed, "model"))  # of a model that draws; `frozen` puts the state back
            target, meter = Target(model, pairs, gallery), Meter.of(len(pairs.images))
            found, encoder = self.alternatives(target, meter), TextEncoder(model)
            costs = [meter, *(Meter.of(len(pairs.images)) for _ in range(len(found) - 1))]
            return {
                name: self._judged(target, encoder, images, captions, cost)
                for (name, (images, captions)), cost in zip(found.items(), costs, strict=True)
            }

    def alternatives(self, target: Target, meter: Meter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Images and captions that queries may choose from, by name, at least one; the first is shown for images, the
        last for captions where none is a success.
        """
        return {"": self.find(target, meter)}

    def attack_images(
        self,
        target: Target,
        meter: Meter,
        objective: ImageObjective | None = None,
        *,
        text_features: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """The image part, raising ``objective`` or its own loss against ``text_features`` (M,D; None: the clean
        ones).
        """
        pairs = target.pairs
        if self.image is None:
            return pairs.images.clone()
        chosen = objective or image_objective(self.image.loss, target, text_features)
        return self.image.maximise(chosen, pairs.images, pairs.image_ids, start=start, meter=meter)

    def attack_captions(self, target: Target, meter: Meter, objective: TextObjective | None = None) -> tuple[str, ...]:
        """The text part on the clean captions, raising ``objective`` or its own one against the clean images."""
        pairs = target.pairs
        if self.text is None:
            return pairs.captions
        chosen = objective or text_objective(self.text.objective, target)
        ids, encoder = pairs.caption_ids, target.encoder
        return self.text.maximise(
            target.model, chosen, pairs.captions, ids, encoder=encoder, owner=pairs.owner, meter=meter
        )

    def _judged(
        self, target: Target, encoder: TextEncoder, images: Tensor, captions: tuple[str, ...], cost: Meter
    ) -> Adversarial:
        norm, edits = self._audit(target.pairs, images, captions)
        image_features = target.model.encode_image(images)
        text_features = encoder.encode(captions) if captions else target.encode_text(captions)
        image_success, caption_success = judge(target, image_features, text_features)
        return Adversarial(
            images=images,
            captions=captions,
            norm=norm,
            edits=edits,
            image_success=image_success,
            caption_success=caption_success,
            **vars(cost),
        )

    def _audit(self, pairs: Pairs, images: Tensor, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Norms (N,) and edits (M,) of the output; a side that is not attacked may not change at all."""
        norm = (self.image.budget if self.image else Linf(0.0)).audit(images, pairs.images)
        return norm, (self.text.budget if self.text else Words(0)).audit(captions, pairs.captions)
