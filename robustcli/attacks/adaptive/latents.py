"""An attack on what a purifier keeps: it moves the codes of the image, whatever the classifier says.

Shapes: N images, B of them, C channels, H height, W width, K entries of a code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustcli.attacks.core.base import ClassifierAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.pgd import PGD
from robustcli.utils.numbers import Number


@runtime_checkable
class Coded(Protocol):
    """A defence that says what it keeps of an image."""

    def codes(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) -> (B,K), each entry weighed by how much of it is kept; deterministic, differentiable."""


@dataclass(frozen=True, kw_only=True)
class LatentDrift(ClassifierAttack):
    """PGD on the squared distance of the kept codes from those of the clean image; of a model without codes, of its
    logits.

    It asks the encoder alone, which draws nothing: a pass is one of the encoder, cheaper than one of the defence, and
    is counted once under `EOT` too, whatever the draws. The logits of a model without codes are averaged, and each
    draw counts. It does not know the label. It starts at random, since at the clean image the distance has no slope.

    Args:
        steps, alpha, restarts, momentum, keep: see `PGD`.
        norm, eps, seed: see `ClassifierAttack`.

    Raises:
        UserError: see `PGD`.
    """

    steps: int = 20
    alpha: Number | None = None
    restarts: int = 1
    momentum: float = 0.0
    keep: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(alpha=self._pgd.alpha, keep=self._pgd.keep)

    @property
    def _pgd(self) -> PGD:
        settings = {name: getattr(self, name) for name in ("steps", "alpha", "restarts", "momentum", "keep")}
        return PGD(seed=self.seed, early_stop=False, **settings)

    @property
    def baseline(self) -> bool:
        return True  # codes may move and the class stay

    def passes(self, problem: Problem) -> Passes:
        spent = self._pgd.passes(problem) + forward(1)  # of the clean images
        return spent.bounded()  # with codes they are the encoder's, which `EOT` does not multiply

    def asks(self, model: Callable[[Tensor], Tensor]) -> bool:
        return _coded(model) is None

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        codes = _codes_of(oracle.model)
        with torch.no_grad():
            before = codes(images)
        oracle.counter.queries.add_(1)

        def drift(x: Tensor, rows: Tensor) -> Tensor:
            return (codes(x) - before[rows]).square().flatten(1).sum(1)

        return self._pgd.maximise(drift, images, sample_ids, threat, counter=oracle.counter)


def _codes_of(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Codes of the defence within ``model``; its logits where there is none."""
    coded = _coded(model)
    return model if coded is None else coded.codes


def _coded(model: object) -> Coded | None:
    """The defence with codes within ``model``, which averages may have wrapped."""
    while not isinstance(model, Coded) and hasattr(model, "model"):
        model = model.model
    return model if isinstance(model, Coded) else None
