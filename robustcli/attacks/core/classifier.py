"""The base class of all attacks on classifiers: a subclass supplies the search, the base audits and judges its result.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Self

import torch
from torch import Tensor

from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import LogitOracle, Meter
from robustcli.attacks.core.pairs import ImageAdversarial, check_images
from robustcli.attacks.core.threat import L2, Eps, Linf, ball, parse_eps
from robustcli.utils.seeding import derive_seed

Classifier = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0,1] -> logits (B,Y)
_PROBE = 8  # images that are classified twice to see whether the model draws


class Attack:
    """What all attacks share: hyper-parameters, kept under their own names, that show in ``repr``."""

    def replace(self, **changed: object) -> Self:
        """The same attack with some hyper-parameters changed."""
        return type(self)(**{name: getattr(self, name) for name in signature(type(self)).parameters} | changed)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in signature(type(self)).parameters)
        return f"{type(self).__name__}({settings})"


class ClassifierAttack(Attack, ABC):
    """Changes images so that a classifier no longer gives their label.

    Attributes:
        norm: ``linf`` or ``l2``, in which the change is measured.
        budget: the ball that the base projects on; None: the attack bounds nothing.
        seed: of the run; a sample's draws depend on it and on the sample's id alone.
    """

    norm: str
    budget: Linf | L2 | None
    seed: int

    @abstractmethod
    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        """The attack's own part: images (B,C,H,W) in [0,1]; row ``i`` of ``images`` is row ``i`` of the oracle.

        Args:
            images: clean, and all of them classified right unless the model is ``oracle.randomised``.
            labels, sample_ids: (B,) long.
        """

    def __call__(
        self, model: Classifier, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None
    ) -> ImageAdversarial:
        """Attack a classifier; a success is ``argmax != label`` of what came out, judged here.

        An image that is classified wrongly to begin with is left as it is. A model whose answers are drawn has no such
        images: all are attacked, with global draws that are seeded here, so that the same call gives the same result.

        Args:
            model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
            labels: (B,) long.
            sample_ids: (B,) long, names of the samples' draws; None: their places in the batch.

        Raises:
            ValueError: images out of range, labels that are no class, NaN logits.
            RuntimeError: a result out of the box or beyond the budget: a fault of the attack.
        """
        check_images(images)
        ids = torch.arange(len(images)) if sample_ids is None else sample_ids
        if len(labels) != len(images) or len(ids) != len(images):
            raise ValueError(f"{len(labels)} labels and {len(ids)} sample_ids for {len(images)} images")
        labels, meter = labels.to(images.device), Meter.of(len(images))
        with frozen(model):
            torch.manual_seed(derive_seed(self.seed, "model"))  # of a model that draws; `frozen` puts the state back
            randomised = is_randomised(model, images)
            right = classify(model, images, labels) == labels
            asked = torch.arange(len(images)) if randomised else torch.nonzero(right).flatten().cpu()
            found = self._attacked(LogitOracle(model, meter, randomised=randomised), images, labels, ids, asked)
            success = classify(model, found, labels) != labels
        norm = (self.budget or ball(self.norm, self._diameter(images))).audit(found, images)
        return self.reported(ImageAdversarial(images=found, success=success, norm=norm, **vars(meter)))

    def reported(self, found: ImageAdversarial) -> ImageAdversarial:
        """``found`` as this attack reports it, where its norm or its success mean more than distance and class."""
        return found

    def _attacked(self, oracle: LogitOracle, images: Tensor, labels: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
        """(B,C,H,W): the images of the rows ``asked`` attacked, the others as they are; costs booked."""
        found, chosen = images.detach().clone(), asked.to(images.device)
        if not len(asked):
            return found
        clean = found[chosen]
        with oracle.part(asked) as part:
            result = self.mislead(part, clean.clone(), labels[chosen], ids[asked.to(ids.device)]).detach()
        if self.budget is not None:
            result = self.budget.settle(result, clean)
        found[chosen] = result
        return found

    def _diameter(self, images: Tensor) -> float:
        return 1.0 if self.norm == "linf" else float(images[0].numel()) if len(images) else 0.0


class MinimumNormAttack(ClassifierAttack, ABC):
    """Looks for the smallest change that misleads; ``norm`` of its result is infinite where nothing was found.

    Args:
        norm: ``linf`` or ``l2``.
        eps: radius within which a success counts, in units of [0,1] pixels; None: any.
        seed: see `ClassifierAttack`.
    """

    budget = None

    def __init__(self, *, norm: str = "l2", eps: Eps | None = None, seed: int = 0) -> None:
        self.norm, self.seed = ball(norm, 0.0).norm, seed
        self.eps = None if eps is None else parse_eps(eps, norm)

    def reported(self, found: ImageAdversarial) -> ImageAdversarial:
        """No norm where nothing was found; a success beyond eps is none."""
        on_cpu = found.success.to(found.norm.device)
        near = found.norm <= (torch.inf if self.eps is None else self.eps)
        return replace(
            found,
            success=found.success & near.to(found.success.device),
            norm=found.norm.masked_fill(~on_cpu, torch.inf),
        )


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
