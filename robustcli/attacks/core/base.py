"""Base classes of attacks on images: a subclass supplies the search, the base projects, audits and judges every result.

An attack is a frozen dataclass of its search's settings. What it may change is a `ThreatModel`, given with the call.

Shapes: B batch, C channels, H height, W width, Y classes; pixels in [0,1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustcli.attacks.core.class_losses import class_objective
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import IMAGE_LOSSES
from robustcli.attacks.core.oracle import ImageObjective, ImageOracle, LogitOracle
from robustcli.attacks.core.pairs import ImageAdversarial, check_images
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, one_of
from robustcli.utils.seeding import derive_seed

Classifier = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0,1] -> logits (B,Y)
_PROBE = 8  # images that are classified twice to see whether the model draws


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search with its settings.

    Args:
        seed: of the run; a sample's draws depend on it and on the sample's id alone.
    """

    seed: int = 0

    @property
    @abstractmethod
    def threat(self) -> ThreatModel:
        """What a call may change that is given no threat model."""

    def replace(self, **changed: object) -> Self:
        """The same search with some settings changed."""
        return replace(self, **changed)  # type: ignore[arg-type]

    def _store(self, **values: object) -> None:
        """Settings as the search reads them, in place of what a config wrote: ``"4/255"`` becomes a number."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def check(self, threat: ThreatModel) -> None:  # noqa: B027, for searches that object to nothing
        """Refuse a threat model that this search cannot serve, before long work.

        Raises:
            UserError: what does not fit, and what would.
        """


@dataclass(frozen=True, kw_only=True)
class ClassifierAttack(Attack):
    """Changes images so that a classifier no longer gives their label.

    Args:
        norm, eps: what a call may change that is given no threat model.
        seed: see `Attack`.
    """

    norm: str = "linf"
    eps: Number | None = "4/255"

    def __post_init__(self) -> None:
        self._store(eps=self.threat.eps)

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    @abstractmethod
    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        """The attack's own part: images (B,C,H,W) in [0,1]; row ``i`` of ``images`` is row ``i`` of the oracle.

        Args:
            images: clean, and all of them classified right unless the model is ``oracle.randomised``.
            labels, sample_ids: (B,) long.
        """

    def __call__(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel | None = None,
        *,
        sample_ids: Tensor | None = None,
    ) -> ImageAdversarial:
        """Attack a classifier; a success is ``argmax != label`` of what came out, judged here.

        An image that is classified wrongly to begin with is left as it is. A model whose answers are drawn has no such
        images: all are attacked, with global draws that are seeded here, so that the same call gives the same result.

        Args:
            model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
            labels: (B,) long.
            threat: what may change; None: the attack's own ``norm`` and ``eps``.
            sample_ids: (B,) long, names of the samples' draws; None: their places in the batch.

        Raises:
            UserError: a threat model that the search cannot serve.
            ValueError: images out of range, labels that are no class, NaN logits.
            RuntimeError: a result out of the box or beyond the threat model: a fault of the attack.
        """
        threat = threat or self.threat
        self.check(threat)
        check_images(images)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids
        if len(labels) != len(images) or len(ids) != len(images):
            raise ValueError(f"{len(labels)} labels and {len(ids)} sample_ids for {len(images)} images")
        labels, counter = labels.to(images.device), QueryCounter.of(len(images))
        with frozen(model):
            torch.manual_seed(derive_seed(self.seed, "model"))  # of a model that draws; `frozen` puts the state back
            randomised = is_randomised(model, images)
            right = classify(model, images, labels) == labels
            asked = torch.arange(len(images)) if randomised else torch.nonzero(right).flatten().cpu()
            found, chosen = images.detach().clone(), asked.to(images.device)
            if len(asked) and threat.moves_images:
                clean = found[chosen]
                with LogitOracle(model, counter, randomised=randomised).part(asked) as part:
                    moved = self.search(part, clean.clone(), labels[chosen], ids[asked.to(ids.device)], threat)
                found[chosen] = self.settle(moved.detach(), clean, threat)
            misled = classify(model, found, labels) != labels
        norm = (threat.at(None) if self.minimum_norm else threat).audit(found, images)
        success = misled
        if self.minimum_norm:
            success = misled & (norm <= threat.ball.eps).to(misled.device)
            norm = norm.masked_fill(~misled.to(norm.device), torch.inf)
        return ImageAdversarial(images=found, success=success, norm=norm, **vars(counter))

    @property
    def minimum_norm(self) -> bool:
        """Whether it looks for the smallest change; an ``eps`` is then the radius within which a success counts, and
        the norm of the result is infinite where nothing was found.
        """
        return False

    def settle(self, found: Tensor, clean: Tensor, threat: ThreatModel) -> Tensor:
        """The allowed images next to what a search found, exactly; the smallest change is left as it is."""
        return found if self.minimum_norm else threat.ball.settle(found, clean)


@dataclass(frozen=True, kw_only=True)
class MinimumNormAttack(ClassifierAttack):
    """Looks for the smallest change that misleads.

    Args:
        norm, eps, seed: see `ClassifierAttack`; an ``eps`` of None accepts any change.
    """

    norm: str = "l2"
    eps: Number | None = None

    @property
    def minimum_norm(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ImageAttack(ClassifierAttack):
    """Moves images within a ball to raise a loss, be it of a dual encoder or of a classifier.

    Args:
        loss: what is raised: ``cross_entropy`` (over the classes, or over all captions of a gallery), ``margin`` and
            ``dlr``; against a dual encoder also ``own_pair``, ``drift`` and ``infonce``; see `losses` and
            `class_losses`.
        early_stop: on a classifier, leave a sample alone as soon as it is fooled, which costs nothing in robust
            accuracy; never done where the model's answers are drawn.
        norm, eps, seed: see `ClassifierAttack`.

    Raises:
        UserError: an unknown norm or loss, or an impossible eps.
    """

    loss: str = "cross_entropy"
    early_stop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, IMAGE_LOSSES)

    def check(self, threat: ThreatModel) -> None:
        if threat.eps is None:
            raise UserError(
                f"threat.eps is null, but {type(self).__name__} needs a radius: give one such as threat.eps=4/255, or "
                "take an attack that looks for the smallest change, such as attack=deepfool."
            )

    @abstractmethod
    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        """The attack's own part: images (B,C,H,W) of higher loss; row ``i`` of ``images`` is row ``i`` of the oracle.

        Args:
            start: (B,C,H,W), the first iterate in place of a random start; it has to be projected.
        """

    def maximise(
        self,
        objective: ImageObjective,
        images: Tensor,
        sample_ids: Tensor,
        threat: ThreatModel | None = None,
        *,
        start: Tensor | None = None,
        counter: QueryCounter | None = None,
    ) -> Tensor:
        """Allowed images that raise ``objective``; the model behind it should be `frozen`.

        Args:
            objective: images (B,C,H,W) and their rows (B,) in ``images`` -> (B,) losses.
            images: (N,C,H,W) float32 in [0,1]; left as they are.
            sample_ids: (N,) long, names of the samples' draws.
            threat: what may change; None: the attack's own ``norm`` and ``eps``.
            start: (N,C,H,W), the first iterate in place of a random start; it is projected.
            counter: is told what was spent.

        Raises:
            UserError: a threat model that the search cannot serve.
            ValueError: images out of range, or of the wrong shape or dtype.
            RuntimeError: the search changed its input, or put out a NaN: a fault of the attack.
        """
        threat = threat or self.threat
        self.check(threat)
        check_images(images)
        if len(sample_ids) != len(images):
            raise ValueError(f"{len(sample_ids)} sample_ids for {len(images)} images")
        if not threat.moves_images or not len(images):
            return images.clone()
        clean = images.detach().clone()
        oracle = ImageOracle(objective, counter or QueryCounter.of(len(images)))
        found = self.ascend(oracle, clean, sample_ids.tolist(), threat, start)
        if not torch.equal(clean, images):
            raise RuntimeError(f"{type(self).__name__} wrote into its input")
        found = self.settle(found.detach(), clean, threat)
        threat.audit(found, clean)
        return found

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        objective = class_objective(self.loss, oracle.model, labels, tell=self.early_stop and not oracle.randomised)
        return self.maximise(objective, images, sample_ids, threat, counter=oracle.counter)


def classify(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """(B,) long, the class of highest logit; `ValueError` for a NaN, or for a label that is no class."""
    with torch.no_grad():
        logits = model(images)
    if bool(logits.isnan().any()):
        raise ValueError("the model gave NaN logits: its success under attack cannot be judged")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels reach from {low} to {high}, but the model has {logits.shape[1]} classes")
    return logits.argmax(1)


def is_randomised(model: Classifier, images: Tensor) -> bool:
    """Whether two passes over the same images differ: as the model says of itself, or by more than rounding does."""
    if isinstance(said := getattr(model, "randomised", None), bool):
        return said
    probe = images[:_PROBE]
    with torch.no_grad():
        return bool(len(probe)) and not torch.allclose(model(probe), model(probe), rtol=1e-3, atol=1e-4, equal_nan=True)
