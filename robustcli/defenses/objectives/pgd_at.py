"""Adversarial training of classifiers by the attack of the run (Madry et al. 2018).

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import ClassifierAttack, ThreatModel, frozen
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.data.sampling import ClassBatch
from robustcli.defenses.objectives.classification import ClassObjective, check_bounded
from robustcli.models import Classifier
from robustcli.utils.errors import UserError

_MODES = ("eval", "train")


@dataclass(frozen=True, kw_only=True)
class PGDAdversarialTraining(ClassObjective):
    """Cross-entropy on the adversarial images of the run's attack (equation 2.1); clean images are not seen.

    Every image is attacked to the last step, also one that is classified wrongly: the inner maximum is one of the loss,
    not of mistakes.

    Args:
        name: in tables.
        attack_mode: ``eval`` or ``train``, how batch norms and dropout behave while the attack searches; the outer step
            is always in train mode. In ``train`` an attack sees the statistics of its batch; the running ones are put
            back afterwards.
        label_smoothing: share of the target in [0,1) that is spread over all classes.

    Raises:
        UserError: another mode, or a share out of range.
    """

    takes_attack = takes_threat = True

    name: str = "pgd_at"
    attack_mode: str = "eval"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.attack_mode not in _MODES:
            raise UserError(f"objective.attack_mode is {self.attack_mode!r}: choose {' or '.join(_MODES)}.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing is {self.label_smoothing}: it is a share, from 0 to below 1.")

    def check(self, attack: ClassifierAttack | None, threat: ThreatModel) -> None:
        check_bounded(self.name, attack, threat)
        assert attack is not None
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
        assert attack is not None
        labels = batch.labels.to(images.device)
        with _searching(model, self.attack_mode) as searched:
            # As if the model drew: then no attack skips a sample that is misclassified already.
            oracle = LogitOracle(searched, QueryCounter.of(len(images)), randomised=True)
            seeded = attack.replace(seed=seed)
            adversarial = seeded.search(oracle, images.clone(), labels, batch.image_ids, threat).detach()
            # Detached, and projected exactly: the outer gradient is that of the weights at fixed images (Danskin).
            adversarial = seeded.settle(adversarial, images, threat)
        return F.cross_entropy(model(adversarial), labels, label_smoothing=self.label_smoothing)


@contextmanager
def _searching(model: Classifier, mode: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model with frozen weights, in ``mode``; flags, buffers and generators are restored afterwards."""
    with frozen(model):
        model.train(mode == "train")
        yield model
