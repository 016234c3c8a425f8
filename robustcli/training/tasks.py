"""Batches and losses of a training, by kind of model; both are functions of the seed and a number.

Shapes: B batch, C channels, H height, W width.
"""

from typing import Any, Protocol

from torch import Tensor

from robustcli.attacks import ClassifierAttack, RetrievalAttack, ThreatModel
from robustcli.data import ImageClassData, ImageTextData
from robustcli.data.augmentation import Augmentation
from robustcli.data.sampling import ClassBatch, Epochs, PairBatch, Pairing, PairSampler
from robustcli.defenses import ClassObjective, PairObjective
from robustcli.defenses.objectives.pairs import View
from robustcli.models import Classifier, DualEncoder
from robustcli.utils.seeding import generator


class Task(Protocol):
    """Batches of a training set by number, and the loss of each."""

    def load(self, number: int) -> tuple[Any, Tensor]:
        """Batch ``number`` of the run and its images (B,C,H,W) in [0,1]; called from another thread, ahead of time.

        So it draws from generators of its own: the global one belongs to the step that runs meanwhile.
        """

    def loss(self, model: Any, batch: Any, images: Tensor, *, seed: int) -> Tensor:
        """The loss of a batch, a scalar with gradients to the weights of ``model``; ``seed`` names its draws."""


class PairTask:
    """Training of a dual encoder on pairs of images and captions, by an objective that may attack them.

    Args:
        attack, threat: of the inner maximisation; no attack for an objective that takes none.
        batch_size: pairs of a micro-batch; ``seed`` names the order of the pairs.
        pairing: how own and augmented pairs enter the batches; None: `Replace`.
        reference: the model as it is before the training, for an objective that reads it.

    Raises:
        UserError: an objective that ``attack`` does not serve, or a batch that is larger than the set.
    """

    def __init__(
        self,
        data: ImageTextData,
        objective: PairObjective,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        *,
        batch_size: int,
        seed: int,
        pairing: Pairing | None = None,
        reference: DualEncoder | None = None,
    ) -> None:
        objective.check(attack, threat)
        objective.check_batch(batch_size)
        self.reference = reference
        self.data, self.objective, self.attack, self.threat = data, objective, attack, threat
        self.sampler = PairSampler(data, batch_size=batch_size, seed=seed, pairing=pairing)

    def load(self, number: int) -> tuple[PairBatch, Tensor]:
        batch = self.sampler(number)
        return batch, self.data.images(batch.image_ids)

    def loss(self, model: DualEncoder, batch: PairBatch, images: Tensor, *, seed: int) -> Tensor:
        return self.objective.loss(model, self.attack, self.threat, images, batch, seed=seed, reference=self.reference)

    def views(self, model: DualEncoder, batch: PairBatch, images: Tensor, *, seed: int) -> tuple[View, ...]:
        """The attacked pairs of a batch that the objective contrasts, see `PairObjective.views`."""
        return self.objective.views(model, self.attack, self.threat, images, batch, seed=seed)


class ClassTask:
    """Training of a classifier on labelled images, which are augmented before anything attacks them.

    Args:
        attack, threat: of the inner maximisation, where the objective has one.
        augmentation: of the images of a batch; an image's own draws depend on its row in the set, not on the batch.
        batch_size: images of a micro-batch; ``seed`` names their order and the draws of the augmentation.

    Raises:
        UserError: an objective that attack or threat model do not serve, or a batch that is larger than the set.
    """

    def __init__(
        self,
        data: ImageClassData,
        objective: ClassObjective,
        attack: ClassifierAttack | None,
        threat: ThreatModel,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        objective.check(attack, threat)
        self.data, self.objective, self.attack, self.threat = data, objective, attack, threat
        self.augmentation, self.seed = augmentation, seed
        self.sampler = Epochs(data, batch_size=batch_size, seed=seed)

    def load(self, number: int) -> tuple[ClassBatch, Tensor]:
        rows = self.sampler(number)
        # The budget of the attack is counted from the augmented image, which is the clean one of this step.
        images = _augmented(self.augmentation, self.data.images(rows), rows, self.seed, number)
        return ClassBatch(rows, self.data.labels[rows]), images

    def loss(self, model: Classifier, batch: ClassBatch, images: Tensor, *, seed: int) -> Tensor:
        return self.objective.loss(model, self.attack, self.threat, images, batch, seed=seed)


class ImageObjective(Protocol):
    """An objective of networks of images, such as `ELBO`."""

    def loss(self, model: Any, images: Tensor, *, number: int, seed: int) -> Tensor:
        """The loss of images (B,C,H,W) in [0,1], batch ``number`` of the run; ``seed`` names its draws."""


class GeneratorTask:
    """Training of a generator on images, which are augmented first; their labels are not read.

    ``load`` gives the number of the batch beside the images, by which the weight of the KL rises. Arguments as those
    of `ClassTask`.
    """

    def __init__(
        self,
        data: ImageClassData,
        objective: ImageObjective,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.data, self.objective, self.augmentation, self.seed = data, objective, augmentation, seed
        self.sampler = Epochs(data, batch_size=batch_size, seed=seed)

    def load(self, number: int) -> tuple[int, Tensor]:
        rows = self.sampler(number)
        # The number stands in for the batch: it counts micro-batches, and so does the warm-up of the KL.
        return number, _augmented(self.augmentation, self.data.images(rows), rows, self.seed, number)

    def loss(self, model: Any, batch: int, images: Tensor, *, seed: int) -> Tensor:
        return self.objective.loss(model, images, number=batch, seed=seed)


def _augmented(augmentation: Augmentation, images: Tensor, rows: Tensor, seed: int, number: int) -> Tensor:
    """Augmented images of batch ``number``; the draws of an image depend on its row in the set, not on the batch."""
    per_image = [generator(seed, "augmentation", number, row) for row in rows.tolist()]
    return augmentation(images, generator(seed, "augmentation", number), per_image)
