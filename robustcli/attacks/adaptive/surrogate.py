"""Transfer: an attack that is computed on one model and judged on another.

Shapes: B samples, C channels, H height, W width, N images, M captions.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustcli.attacks.adaptive.wrapped import WrappedAttack, book
from robustcli.attacks.core.base import ImageAttack, RetrievalAttack
from robustcli.attacks.core.classifier import Classifier, ClassifierAttack, classify
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import LogitOracle, Meter
from robustcli.attacks.core.pairs import DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.target import Target


class Surrogate(WrappedAttack):
    """An attack on classifiers that never asks the model that it is judged on.

    An image is not left as soon as the surrogate is fooled, since a point at the surrogate's boundary hardly ever
    fools another model; and an `ImageAttack` also moves images that the surrogate gets wrong. Other attacks leave those
    as they are.

    The counts of the result are passes through the surrogate; the target is asked nothing.

    Args:
        attack: the search.
        model: the surrogate, images (B,C,H,W) in [0,1] -> logits (B,Y), with the classes of the target in its order.
    """

    def __init__(self, attack: ClassifierAttack, model: Classifier) -> None:
        super().__init__(attack)
        self.model = model

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        found, spent = transferable(self.attack, self.model, images, labels, sample_ids)
        book(oracle.meter, spent)
        return found


def transferable(
    attack: ClassifierAttack, model: Classifier, images: Tensor, labels: Tensor, sample_ids: Tensor
) -> tuple[Tensor, Meter]:
    """What ``attack`` makes of images (B,C,H,W) on ``model``, for the sake of another model, and what it cost."""
    if not isinstance(attack, ImageAttack):
        result = attack(model, images, labels, sample_ids)
        return result.images, Meter(result.queries, result.gradients, result.zero_gradients, result.nan_gradients)
    spent, lasting = Meter.of(len(images)), attack.replace(early_stop=False)
    with frozen(model):
        found = lasting.mislead(LogitOracle(model, spent), images, labels, sample_ids)
    return found, spent


class RetrievalSurrogate(RetrievalAttack):
    """An attack on dual encoders that never asks the model that it is judged on.

    Args:
        attack: the search.
        model: the surrogate.
        gallery: of the surrogate, for pairs; None: the pairs themselves, with the relevance that the judge knows, so
            that the negatives of a sample are those of its chunk.
    """

    def __init__(
        self,
        attack: RetrievalAttack,
        model: DualEncoderLike,
        *,
        gallery: Callable[[Pairs], Gallery] | None = None,
    ) -> None:
        super().__init__(image=attack.image, text=attack.text, seed=attack.seed)
        self.attack, self.model, self.gallery = attack, model, gallery

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        return next(iter(self.alternatives(target, meter).values()))

    def alternatives(self, target: Target, meter: Meter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        with frozen(self.model), torch.no_grad():
            own = self.gallery(target.pairs) if self.gallery else self._chunk(target)
            own = replace(own, attacker=target.gallery.attacker)
            return self.attack.alternatives(Target(self.model, target.pairs, own), meter)

    def _chunk(self, target: Target) -> Gallery:
        relevance = target.gallery.image_matches[:, target.gallery.caption_rows]
        return Gallery.of(self.model, target.pairs, relevance)


def right_on(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool on the CPU: what ``model`` classifies right."""
    with frozen(model):
        return (classify(model, images, labels.to(images.device)) == labels.to(images.device)).cpu()
