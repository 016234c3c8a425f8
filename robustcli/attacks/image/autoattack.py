"""AutoAttack (Croce and Hein 2020): parameter-free attacks one after the other, each on the samples not fooled yet.

Shapes: N samples, B samples not fooled yet, Y classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.adaptive.eot import EOT
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.attacks.core.restarts import better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.square import Square
from robustcli.utils.numbers import Number, at_least, one_of

_DRAWS = 20  # passes over which gradient and margin of a randomised model are averaged
_TARGETS = 9
_RESTARTS = 5  # of ``plus``


@dataclass(frozen=True, kw_only=True)
class AutoAttack(ClassifierAttack):
    """Worst case over an ensemble: a sample is robust only if no member fools the model on it.

    Such a sample keeps the image of highest margin. Against a randomised model a single success proves nothing: there
    every member attacks every sample, and the image of highest mean margin over 20 draws is kept.

    Args:
        version: ``standard``: APGD on cross-entropy, targeted APGD, targeted FAB, Square, in this order; ``plus``:
            with restarts and their untargeted versions as well; ``apgd``: the first two of ``standard`` alone;
            ``rand``, for randomised models: APGD on cross-entropy and on DLR, gradients averaged over 20 draws.
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

    def passes(self, problem: Problem) -> Passes:
        margin_of_member = forward(_DRAWS if problem.randomised else 1)
        total = Passes(at_most=problem.stops_early)
        for member in self.members().values():
            spent = member.passes(problem)
            assert spent is not None  # all of them are ours
            total += spent + margin_of_member
        return total

    def members(self) -> Mapping[str, ClassifierAttack]:
        """The attacks by name, in their order."""
        return {name: _MEMBERS[name](self) for name in _VERSIONS[self.version]}

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best, best_margin = images.clone(), lowest(images)
        rows = torch.arange(len(images), device=images.device)
        for name, member in self.members().items():
            if not len(rows):
                break
            clean, labels_left, ids = images[rows], labels[rows], sample_ids[rows.to(sample_ids.device)]
            with oracle.part(rows) as part:
                x_adv = self.settle(
                    member.search(part, clean.clone(), labels_left, ids, threat).detach(), clean, threat
                )
            margins = self._margin(oracle, x_adv, rows, labels_left)
            previous = best_margin[rows]
            best[rows], best_margin[rows] = better(x_adv, margins, best[rows], previous)
            oracle.credit(name, rows[best_margin[rows] > previous])
            rows = rows if oracle.randomised else rows[best_margin[rows] <= 0]
        return best

    @staticmethod
    def _margin(oracle: LogitOracle, images: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        draws = range(_DRAWS if oracle.randomised else 1)
        return torch.stack([margin(oracle.logits(images, rows), labels) for _ in draws]).mean(0)


# Each member has the seed of the ensemble: its draws are distinguished by the name of its class.
_MEMBERS: Mapping[str, Callable[[AutoAttack], ClassifierAttack]] = {
    "apgd-ce": lambda ensemble: APGD(steps=ensemble.steps, seed=ensemble.seed),
    "apgd-t": lambda ensemble: APGD(steps=ensemble.steps, targets=_TARGETS, seed=ensemble.seed),
    "fab-t": lambda ensemble: FAB(steps=ensemble.steps, targets=_TARGETS, seed=ensemble.seed),
    "square": lambda ensemble: Square(queries=ensemble.queries, seed=ensemble.seed),
    "apgd-ce-5": lambda ensemble: APGD(steps=ensemble.steps, restarts=_RESTARTS, seed=ensemble.seed),
    "apgd-dlr-5": lambda ensemble: APGD(steps=ensemble.steps, loss="dlr", restarts=_RESTARTS, seed=ensemble.seed),
    "fab-5": lambda ensemble: FAB(steps=ensemble.steps, restarts=_RESTARTS, seed=ensemble.seed),
    "eot-apgd-ce": lambda ensemble: EOT(APGD(steps=ensemble.steps, seed=ensemble.seed), draws=_DRAWS),
    "eot-apgd-dlr": lambda ensemble: EOT(APGD(steps=ensemble.steps, loss="dlr", seed=ensemble.seed), draws=_DRAWS),
}
_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
    "apgd": ("apgd-ce", "apgd-t"),
    "rand": ("eot-apgd-ce", "eot-apgd-dlr"),
}
