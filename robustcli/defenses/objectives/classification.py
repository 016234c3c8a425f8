"""Training objectives of classifiers.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import ClassifierAttack, ThreatModel
from robustcli.data.sampling import ClassBatch
from robustcli.models import Classifier
from robustcli.utils.errors import UserError


class ClassObjective(ABC):
    """Training objective of a classifier.

    Attributes:
        name: in tables.
        takes_attack, takes_threat: True if it trains against the attack of the run, and within its threat model.
    """

    name: str
    takes_attack: ClassVar[bool] = False
    takes_threat: ClassVar[bool] = False

    def check(self, attack: ClassifierAttack | None, threat: ThreatModel) -> None:  # noqa: B027, objects to nothing
        """Refuse an attack or a threat model that this objective cannot train against, before long work.

        Raises:
            UserError: an attack or threat model that does not fit; the message names one that does.
        """

    @abstractmethod
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
        """Loss of one batch, a scalar with gradients to the weights of ``model``.

        Args:
            attack, threat: of the inner maximisation; None where the objective takes no attack.
            images: (B,C,H,W) in [0,1], those of ``batch``.
            batch: labels and names of the images.
            seed: names the draws of this step; an attack takes it by ``attack.replace(seed=seed)``.
        """


@dataclass(frozen=True, kw_only=True)
class Standard(ClassObjective):
    """Cross-entropy on the clean images, the baseline of every defence.

    Args:
        name: in tables.
        label_smoothing: share of the target in [0,1) that is spread over all classes.
    """

    name: str = "standard"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}: it is a share, from 0 to below 1.")

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
        labels = batch.labels.to(images.device)
        return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)


def check_bounded(objective: str, attack: ClassifierAttack | None, threat: ThreatModel) -> None:
    """`UserError` unless ``attack`` stays within a ball that is no point: a robust objective trains inside it."""
    if attack is not None and attack.minimum_norm:
        raise UserError(
            f"objective={objective} trains within norm and eps of the threat model, but {type(attack).__name__} looks "
            "for the smallest change: choose attack=pgd, attack=apgd or attack=fgsm."
        )
    if not threat.radius:
        raise UserError(
            f"objective={objective} trains within threat.eps, which is {'null' if threat.eps is None else 0}: give it, "
            "such as threat.eps=4/255, or take objective=standard."
        )
