"""Training objectives of classifiers.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import ClassifierAttack
from robustcli.data.sampling import ClassBatch
from robustcli.models import Classifier
from robustcli.utils.errors import UserError


class ClassObjective(ABC):
    """What a classifier is trained on.

    Attributes:
        name: what tables call it.
    """

    name: str

    def check(self, attack: ClassifierAttack) -> None:  # noqa: B027, for a default that objects to nothing
        """Refuse an attack that this objective cannot train against, before long work.

        Raises:
            UserError: what is wrong with it, and another one.
        """

    @abstractmethod
    def loss(
        self, model: Classifier, attack: ClassifierAttack, images: Tensor, batch: ClassBatch, *, seed: int
    ) -> Tensor:
        """Loss of one batch, a scalar with gradients to the weights of ``model``.

        Args:
            attack: within the budget of the run; not every objective asks for it.
            images: (B,C,H,W) in [0,1], those of ``batch``.
            seed: names the draws of this step; an attack takes it by ``attack.replace(seed=seed)``.
        """


@dataclass(frozen=True, kw_only=True)
class Standard(ClassObjective):
    """Cross-entropy on the clean images: what every defence is compared with.

    Args:
        name: what tables call it.
        label_smoothing: share of the target in [0,1) that is spread over all classes.
    """

    name: str = "standard"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}: it is a share, from 0 to below 1.")

    def loss(
        self, model: Classifier, attack: ClassifierAttack, images: Tensor, batch: ClassBatch, *, seed: int
    ) -> Tensor:
        labels = batch.labels.to(images.device)
        return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)


def needs_budget(objective: str, attack: ClassifierAttack) -> None:
    """`UserError` unless ``attack`` stays within a ball: a robust objective needs its norm and eps."""
    if attack.budget is None:
        raise UserError(
            f"objective={objective} trains within norm and eps of the attack, but {type(attack).__name__} has no such "
            "bound: choose attack=pgd, attack=apgd or attack=fgsm."
        )
    if attack.budget.eps == 0:
        raise UserError(
            f"objective={objective} trains within eps of the attack, which is 0: give attack.image.eps, such as 4/255, "
            "or objective=standard."
        )
