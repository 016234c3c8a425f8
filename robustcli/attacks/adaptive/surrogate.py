"""Transfer attacks: computed on a surrogate model, judged on another one.

Shapes: B samples, C channels, H height, W width, N images, M captions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.attacks.core.base import Classifier, ClassifierAttack, ImageAttack, classify
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.pairs import Alternative, DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.retrieval import RetrievalAttack, TextAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Surrogate(WrappedAttack):
    """Transfer attack on a classifier: the search runs on a surrogate, without a query of the target.

    There is no early stop, since a point at the surrogate's decision boundary hardly ever fools another model; and an
    `ImageAttack` also attacks images that the surrogate misclassifies. Other attacks leave those as they are.

    The counts of the result are passes through the surrogate.

    Args:
        attack: the search.
        model: the surrogate, images (B,C,H,W) in [0,1] -> logits (B,Y), with the classes of the target in its order.
    """

    model: Classifier = field(kw_only=False, repr=False)

    def passes(self, problem: Problem) -> Passes | None:
        return passes_for_transfer(self.attack, problem)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        x_adv, counter = attack_for_transfer(self.attack, self.model, images, labels, sample_ids, threat)
        oracle.counter.add(counter)
        return x_adv


def attack_for_transfer(
    attack: ClassifierAttack,
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    sample_ids: Tensor,
    threat: ThreatModel,
) -> tuple[Tensor, QueryCounter]:
    """Adversarial images (B,C,H,W), computed on ``model`` to transfer to another one, and the passes that they cost."""
    if not isinstance(attack, ImageAttack):
        result = attack(model, images, labels, threat, sample_ids=sample_ids)
        names = ("queries", "gradients", "zero_gradients", "nan_gradients")
        return result.images, QueryCounter(*(getattr(result, name) for name in names))
    counter, without_early_stop = QueryCounter.of(len(images)), attack.replace(early_stop=False)
    with frozen(model):
        x_adv = without_early_stop.search(LogitOracle(model, counter), images, labels, sample_ids, threat)
    return x_adv, counter


def passes_for_transfer(attack: ClassifierAttack, problem: Problem) -> Passes | None:
    """Passes of `attack_for_transfer` for one image."""
    spent = attack.passes(problem)
    return replace(spent, at_most=False) if isinstance(attack, ImageAttack) and spent is not None else spent


@dataclass(frozen=True, kw_only=True)
class RetrievalSurrogate(RetrievalAttack):
    """Transfer attack on a dual encoder: the search runs on a surrogate, without a query of the target.

    Args:
        attack: the search.
        model: the surrogate.
        gallery: of the surrogate, for pairs; None: the pairs themselves, with the relevance of the target's gallery, so
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

    def passes(self, problem: Problem) -> Passes | None:
        return self.attack.passes(problem)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        first = next(iter(self.alternatives(target, counter).values()))
        return first.images, first.captions

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, Alternative]:
        with frozen(self.model), torch.no_grad():
            gallery = self.gallery(target.pairs) if self.gallery else self._chunk_gallery(target)
            return self.attack.alternatives(Target(self.model, target.pairs, gallery, target.threat), counter)

    def _chunk_gallery(self, target: Target) -> Gallery:
        relevance = target.gallery.image_matches.among(target.gallery.caption_rows).matrix()
        return Gallery.of(self.model, target.pairs, relevance)


def correct_on(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool on the CPU: ``model`` classifies the image correctly."""
    with frozen(model):
        return (classify(model, images, labels.to(images.device)) == labels.to(images.device)).cpu()
