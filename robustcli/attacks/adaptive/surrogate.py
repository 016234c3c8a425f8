"""Transfer: an attack that is computed on one model and judged on another.

Shapes: B samples, C channels, H height, W width, N images, M captions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.attacks.core.base import Classifier, ClassifierAttack, ImageAttack, classify
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.pairs import DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.retrieval import RetrievalAttack, TextAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
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

    model: Classifier = field(kw_only=False, repr=False)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        found, spent = transferable(self.attack, self.model, images, labels, sample_ids, threat)
        oracle.counter.add(spent)
        return found


def transferable(
    attack: ClassifierAttack,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    sample_ids: Tensor,
    threat: ThreatModel,
) -> tuple[Tensor, QueryCounter]:
    """Allowed images that ``attack`` makes of images (B,C,H,W) on ``model``, for the sake of another model, and what
    they cost.
    """
    if not isinstance(attack, ImageAttack):
        result = attack(model, images, labels, threat, sample_ids=sample_ids)
        names = ("queries", "gradients", "zero_gradients", "nan_gradients")
        return result.images, QueryCounter(*(getattr(result, name) for name in names))
    spent, lasting = QueryCounter.of(len(images)), attack.replace(early_stop=False)
    with frozen(model):
        found = lasting.search(LogitOracle(model, spent), images, labels, sample_ids, threat)
    return found, spent


@dataclass(frozen=True, kw_only=True)
class RetrievalSurrogate(RetrievalAttack):
    """An attack on dual encoders that never asks the model that it is judged on.

    Args:
        attack: the search.
        model: the surrogate.
        gallery: of the surrogate, for pairs; None: the pairs themselves, with the relevance that the judge knows, so
            that the negatives of a sample are those of its chunk.
    """

    attack: RetrievalAttack = field(kw_only=False)
    image: ImageAttack | None = field(init=False, repr=False)
    text: TextAttack | None = field(init=False, repr=False)
    seed: int = field(init=False, repr=False)
    model: DualEncoderLike = field(kw_only=False, repr=False)
    gallery: Callable[[Pairs], Gallery] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._store(image=self.attack.image, text=self.attack.text, seed=self.attack.seed)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        return next(iter(self.alternatives(target, counter).values()))

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        with frozen(self.model), torch.no_grad():
            own = self.gallery(target.pairs) if self.gallery else self._chunk(target)
            return self.attack.alternatives(Target(self.model, target.pairs, own, target.threat), counter)

    def _chunk(self, target: Target) -> Gallery:
        relevance = target.gallery.image_matches[:, target.gallery.caption_rows]
        return Gallery.of(self.model, target.pairs, relevance)


def right_on(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool on the CPU: what ``model`` classifies right."""
    with frozen(model):
        return (classify(model, images, labels.to(images.device)) == labels.to(images.device)).cpu()
