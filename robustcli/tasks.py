"""What a training step reads and minimises, for dual encoders and for classifiers; both a function of seed and number.

Shapes: B batch, C channels, H height, W width.
"""

from typing import Any, Protocol

from torch import Tensor

from robustcli.attacks import ClassifierAttack, RetrievalAttack
from robustcli.data import ImageClassData, ImageTextData
from robustcli.data.augmentation import Augmentation
from robustcli.data.sampling import ClassBatch, Epochs, PairBatch, PairSampler
from robustcli.defenses import ClassObjective, Objective
from robustcli.models import Classifier, DualEncoder
from robustcli.seeding import generator


class Task(Protocol):
    """What the trainer needs of a kind of model."""

    def load(self, number: int) -> tuple[Any, Tensor]:
        """Batch ``number`` of the run and its images (B,C,H,W) in [0,1]; called from another thread, ahead of time."""

    def loss(self, model: Any, batch: Any, images: Tensor, *, seed: int) -> Tensor:
        """The loss of a batch, a scalar with gradients to the weights of ``model``; ``seed`` names its draws."""


class PairTask:
    """A dual encoder on pairs of images and captions, against an attack."""

    def __init__(
        self, data: ImageTextData, objective: Objective, attack: RetrievalAttack, *, batch_size: int, seed: int
    ) -> None:
        objective.check(attack)
        self.data, self.objective, self.attack = data, objective, attack
        self.sampler = PairSampler(data, batch_size=batch_size, seed=seed)

    def load(self, number: int) -> tuple[PairBatch, Tensor]:
        batch = self.sampler(number)
        return batch, self.data.images(batch.image_ids)

    def loss(self, model: DualEncoder, batch: PairBatch, images: Tensor, *, seed: int) -> Tensor:
        return self.objective.loss(model, self.attack, images, batch, seed=seed)


class ClassTask:
    """A classifier on labelled images, which are augmented before anything attacks them.

    Args:
        attack: what the objective may train against.
    """

    def __init__(
        self,
        data: ImageClassData,
        objective: ClassObjective,
        attack: ClassifierAttack,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.data, self.objective, self.attack, self.augmentation = data, objective, attack, augmentation
        self.seed = seed
        self.sampler = Epochs(data, batch_size=batch_size, seed=seed)

    def load(self, number: int) -> tuple[ClassBatch, Tensor]:
        rows = self.sampler(number)
        images = self.augmentation(self.data.images(rows), generator(self.seed, "augmentation", number))
        return ClassBatch(rows, self.data.labels[rows]), images

    def loss(self, model: Classifier, batch: ClassBatch, images: Tensor, *, seed: int) -> Tensor:
        return self.objective.loss(model, self.attack, images, batch, seed=seed)
