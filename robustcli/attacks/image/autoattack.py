"""AutoAttack (Croce and Hein 2020): attacks without parameters, one after the other, each on what still stands.

Shapes: N samples, B samples that still stand, Y classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.adaptive.eot import EOT
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.restarts import better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.square import Square
from robustcli.utils.numbers import Number, at_least, one_of

_DRAWS = 20  # passes over which the gradient of a randomised model is averaged, and its margin
_TARGETS = 9
_RESTARTS = 5  # of ``plus``


@dataclass(frozen=True, kw_only=True)
class AutoAttack(ClassifierAttack):
    """The worst case over an ensemble: a sample stands only if it stands against every member.

    A sample that no member fools keeps the image of highest margin. On a model whose answers are drawn one success
    proves nothing: there every member attacks every sample, and what is kept has the highest mean margin of 20 draws.

    Args:
        version: ``standard``: APGD on cross-entropy, targeted APGD, targeted FAB, Square, in this order; ``plus``:
            with restarts and their untargeted versions as well; ``rand``, for models whose answers are drawn: APGD on
            cross-entropy and on DLR, gradients averaged over 20 draws.
        steps: of the members that take steps; the published attack takes 100.
        queries: of Square; the published attack takes 5000.
        norm, eps, seed: see `ClassifierAttack`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    eps: Number | None = "8/255"
    version: str = "standard"
    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        at_least("queries", self.queries, 1)
        one_of("version", self.version, tuple(_VERSIONS))

    def check(self, threat: ThreatModel) -> None:
        for member in self.members().values():
            member.check(threat)

    def members(self) -> Mapping[str, ClassifierAttack]:
        """The attacks by name, in their order."""
        return {name: _MEMBERS[name](self) for name in _VERSIONS[self.version]}

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best, best_margin = images.clone(), lowest(images)
        rows = torch.arange(len(images), device=images.device)
        for member in self.members().values():
            if not len(rows):
                break
            clean, own, ids = images[rows], labels[rows], sample_ids[rows.to(sample_ids.device)]
            with oracle.part(rows) as part:
                found = self.settle(member.search(part, clean.clone(), own, ids, threat).detach(), clean, threat)
            heights = self._margin(oracle, found, rows, own)
            best[rows], best_margin[rows] = better(found, heights, best[rows], best_margin[rows])
            rows = rows if oracle.randomised else rows[best_margin[rows] <= 0]
        return best

    @staticmethod
    def _margin(oracle: LogitOracle, images: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        passes = range(_DRAWS if oracle.randomised else 1)
        return torch.stack([margin(oracle.logits(images, rows), labels) for _ in passes]).mean(0)


# Each member has the ensemble's seed: its draws are named by its own class.
_MEMBERS: Mapping[str, Callable[[AutoAttack], ClassifierAttack]] = {
    "apgd-ce": lambda own: APGD(steps=own.steps, seed=own.seed),
    "apgd-t": lambda own: APGD(steps=own.steps, targets=_TARGETS, seed=own.seed),
    "fab-t": lambda own: FAB(steps=own.steps, targets=_TARGETS, seed=own.seed),
    "square": lambda own: Square(queries=own.queries, seed=own.seed),
    "apgd-ce-5": lambda own: APGD(steps=own.steps, restarts=_RESTARTS, seed=own.seed),
    "apgd-dlr-5": lambda own: APGD(steps=own.steps, loss="dlr", restarts=_RESTARTS, seed=own.seed),
    "fab-5": lambda own: FAB(steps=own.steps, restarts=_RESTARTS, seed=own.seed),
    "eot-apgd-ce": lambda own: EOT(APGD(steps=own.steps, seed=own.seed), draws=_DRAWS),
    "eot-apgd-dlr": lambda own: EOT(APGD(steps=own.steps, loss="dlr", seed=own.seed), draws=_DRAWS),
}
_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
    "rand": ("eot-apgd-ce", "eot-apgd-dlr"),
}
