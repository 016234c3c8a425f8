"""Base classes of attacks on images: a subclass supplies the search, the base projects, audits and judges every result.

An attack is a frozen dataclass of the settings of its search. The budget is a `ThreatModel`, given with the call.

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
from robustcli.attacks.core.pairs import ImageAdversarial, check_images, check_labels
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, one_of
from robustcli.utils.seeding import derive_seed

Classifier = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0,1] -> logits (B,Y)
_PROBE = 8  # images that are classified twice to see if the model is randomised


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base class of all attacks: a search and its settings.

    Args:
        seed: of the run; the random draws of a sample depend on it and on the sample's id alone.
    """

    seed: int = 0

    @property
    @abstractmethod
    def threat(self) -> ThreatModel:
        """Threat model of a call without one."""

    def replace(self, **changed: object) -> Self:
        """A copy with some settings changed."""
        return replace(self, **changed)  # type: ignore[arg-type]

    def _store(self, **values: object) -> None:
        """Write parsed settings over those of the config: ``"4/255"`` becomes a number."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def check(self, threat: ThreatModel) -> None:  # noqa: B027, for searches that object to nothing
        """Refuse a threat model outside the scope of this search, before long work.

        Raises:
            UserError: names the setting that does not fit, and one that does.
        """

    def passes(self, problem: Problem) -> Passes | None:
        """Passes of the search for one image, at most or exactly; None of a search that cannot tell. Those by which a
        result is judged are not among them.
        """
        return None

    @property
    def baseline(self) -> bool:
        """True of a search that may miss what is near, such as noise or one step: a reference for others, whose own
        figure is no claim of robustness. Tables say so, and the contract asks for no strength.
        """
        return False


@dataclass(frozen=True, kw_only=True)
class ClassifierAttack(Attack):
    """Untargeted attack on a classifier.

    Args:
        norm, eps: threat model of a call without one; eps in units of [0,1] pixels.
        seed: see `Attack`.
    """

    norm: str = "linf"
    eps: Number | None = "4/255"

    def __post_init__(self) -> None:
        self._store(eps=self.threat.eps)

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def check(self, threat: ThreatModel) -> None:
        """Refuse a threat model outside the scope of this search; an override begins with ``super().check(threat)``.

        Raises:
            UserError: no radius, for a search within one; or see `Attack.check`.
        """
        if threat.eps is None and not self.minimum_norm:
            raise UserError(
                f"threat.eps is null, but {type(self).__name__} needs a radius: give one such as threat.eps=4/255, or "
                "take an attack that looks for the smallest change, such as attack=deepfool."
            )

    @abstractmethod
    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        """The search: adversarial images (B,C,H,W) in [0,1]; row ``i`` of ``images`` is row ``i`` of the oracle.

        Args:
            images: clean, all of them classified correctly unless the model is ``oracle.randomised``.
            labels: (B,) long.
            sample_ids: (B,) long; ``sample_ids.tolist()`` are the numbers that name a `generator` for each.
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
        """Attack a classifier; success is ``argmax != label`` of the output, judged here by a forward pass of its own.

        An image that is misclassified when clean is left as it is. Of a randomised model all images are attacked, with
        global draws that are seeded here, so that the same call gives the same result.

        Args:
            model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
            labels: (B,), whole numbers of any type.
            threat: None: the attack's own ``norm`` and ``eps``.
            sample_ids: (B,) long, seeds of the samples' random draws; None: their places in the batch.

        Raises:
            UserError: a threat model outside the scope of the search.
            ValueError: images out of range, labels of another shape or that are no class, NaN logits.
            RuntimeError: a result out of the box or beyond the threat model: a fault of the attack.
        """
        threat = self._checked(threat)
        check_images(images)
        check_labels(labels)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids
        if len(labels) != len(images) or len(ids) != len(images):
            raise ValueError(f"{len(labels)} labels and {len(ids)} sample_ids for {len(images)} images")
        labels, counter = labels.to(images.device, torch.long), QueryCounter.of(len(images))
        with frozen(model):
            torch.manual_seed(derive_seed(self.seed, "model"))  # of a randomised model; `frozen` puts the state back
            randomised = is_randomised(model, images)
            correct = classify(model, images, labels) == labels
            attacked = torch.arange(len(images)) if randomised else torch.nonzero(correct).flatten().cpu()
            x_adv, rows = images.detach().clone(), attacked.to(images.device)
            oracle = LogitOracle(model, counter, randomised=randomised)
            if len(attacked) and threat.moves_images:
                clean = x_adv[rows]
                with oracle.part(attacked) as part:
                    result = self.search(part, clean.clone(), labels[rows], ids[attacked.to(ids.device)], threat)
                x_adv[rows] = self.settle(result.detach(), clean, threat)
            fooled = classify(model, x_adv, labels) != labels
        norm = (threat.at(None) if self.minimum_norm else threat).audit(x_adv, images)
        success = fooled
        if self.minimum_norm:
            success = fooled & (norm <= threat.ball.eps).to(fooled.device)
            norm = norm.masked_fill(~fooled.to(norm.device), torch.inf)
        members = tuple(oracle.members)
        return ImageAdversarial(images=x_adv, success=success, norm=norm, members=members, **vars(counter))

    @property
    def minimum_norm(self) -> bool:
        """True of a search for the smallest perturbation; ``eps`` is then the radius within which a success counts, and
        the norm of the result is infinite where the model is not fooled.
        """
        return False

    def _checked(self, threat: ThreatModel | None) -> ThreatModel:
        """Threat model of a call, or the attack's own, within the scope of the search."""
        threat = threat or self.threat
        self.check(threat)
        ClassifierAttack.check(self, threat)  # a subclass's own check may have left it out, and no audit would notice
        return threat

    def asks(self, model: Classifier) -> bool:
        """True where a pass that the search counts is one of ``model``; False where it asks a part of it instead, which
        answers once however many draws the model averages.
        """
        return True

    def settle(self, x_adv: Tensor, clean: Tensor, threat: ThreatModel) -> Tensor:
        """Exact projection of a result onto the threat model; that of a minimum-norm attack is left as it is."""
        return x_adv if self.minimum_norm else threat.ball.settle(x_adv, clean)


@dataclass(frozen=True, kw_only=True)
class MinimumNormAttack(ClassifierAttack):
    """Base class of searches for the smallest perturbation that fools the model.

    Args:
        norm, eps, seed: see `ClassifierAttack`; an ``eps`` of None accepts any perturbation.
    """

    norm: str = "l2"
    eps: Number | None = None

    @property
    def minimum_norm(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ImageAttack(ClassifierAttack):
    """Base class of searches that maximise a loss within a ball, of a classifier or of a dual encoder.

    Args:
        loss: ``cross_entropy`` (over the classes, or over all captions of a gallery), ``margin`` and
            ``dlr``; against a dual encoder also ``own_pair``, ``drift`` and ``infonce``; see `losses` and
            `class_losses`.
        early_stop: on a classifier, a sample leaves the search as soon as it is fooled, which costs nothing in robust
            accuracy; never done with a randomised model.
        norm, eps, seed: see `ClassifierAttack`.

    Raises:
        UserError: an unknown norm or loss, or an impossible eps.
    """

    loss: str = "cross_entropy"
    early_stop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, IMAGE_LOSSES)

    @abstractmethod
    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        """The search: images (B,C,H,W) of higher loss; row ``i`` of ``images`` is row ``i`` of the oracle.

        Args:
            start: (B,C,H,W), first iterate in place of a random start; the search projects it.
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
        """Images within the threat model that maximise ``objective``; the model behind it should be `frozen`.

        Args:
            objective: images (B,C,H,W) and their rows (B,) in ``images`` -> (B,) losses.
            images: (N,C,H,W) float32 in [0,1]; left as they are.
            sample_ids: (N,) long, seeds of the samples' random draws.
            threat: None: the attack's own ``norm`` and ``eps``.
            start: (N,C,H,W), first iterate in place of a random start; it is projected.
            counter: forward and backward passes are added to it.

        Raises:
            UserError: a threat model outside the scope of the search.
            ValueError: images out of range, or of the wrong shape or dtype.
            RuntimeError: the search changed its input, or put out a NaN: a fault of the attack.
        """
        threat = self._checked(threat)
        check_images(images)
        if len(sample_ids) != len(images):
            raise ValueError(f"{len(sample_ids)} sample_ids for {len(images)} images")
        if not threat.moves_images or not len(images):
            return images.clone()
        clean = images.detach().clone()
        oracle = ImageOracle(objective, counter or QueryCounter.of(len(images)))
        x_adv = self.ascend(oracle, clean, sample_ids.tolist(), threat, start)
        if not torch.equal(clean, images):
            raise RuntimeError(f"{type(self).__name__} wrote into its input")
        x_adv = self.settle(x_adv.detach(), clean, threat)
        threat.audit(x_adv, clean)
        return x_adv

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        report_fooled = self.early_stop and not oracle.randomised
        objective = class_objective(self.loss, oracle.model, labels, report_fooled=report_fooled)
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
    """True if two passes over the same images differ: by the model's own ``randomised``, or by more than rounding."""
    if isinstance(declared := getattr(model, "randomised", None), bool):
        return declared
    probe = images[:_PROBE]
    with torch.no_grad():
        return bool(len(probe)) and not torch.allclose(model(probe), model(probe), rtol=1e-3, atol=1e-4, equal_nan=True)
