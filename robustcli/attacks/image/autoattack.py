"""AutoAttack (Croce and Hein 2020): attacks without parameters, one after the other, each on what still stands.

Shapes: N samples, B samples that still stand, Y classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustcli.attacks.adaptive.eot import EOT
from robustcli.attacks.core.classifier import ClassifierAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.restarts import better, lowest
from robustcli.attacks.core.threat import L2, Eps, Linf, at_least, ball
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.losses import margin
from robustcli.attacks.image.square import Square
from robustcli.utils.errors import UserError

_DRAWS = 20  # passes over which the gradient of a randomised model is averaged, and its margin
_TARGETS = 9
_RESTARTS = 5  # of ``plus``


class AutoAttack(ClassifierAttack):
    """The worst case over an ensemble: a sample stands only if it stands against every member.

    A sample that no member fools keeps the image of highest margin. On a model whose answers are drawn one success
    proves nothing: there every member attacks every sample, and what is kept has the highest mean margin of 20 draws.

    Args:
        norm, eps, seed: see `ImageAttack`.
        version: ``standard``: APGD on cross-entropy, targeted APGD, targeted FAB, Square, in this order; ``plus``:
            with restarts and their untargeted versions as well; ``rand``, for models whose answers are drawn: APGD on
            cross-entropy and on DLR, gradients averaged over 20 draws.
        steps: of the members that take steps; the published attack takes 100.
        queries: of Square; the published attack takes 5000.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: Eps = "8/255",
        version: str = "standard",
        steps: int = 100,
        queries: int = 5000,
        seed: int = 0,
    ) -> None:
        self.budget: Linf | L2 = ball(norm, eps)
        self.norm, self.eps, self.seed = norm, self.budget.eps, seed
        self.steps, self.queries = at_least("steps", steps, 0), at_least("queries", queries, 1)
        if version not in _VERSIONS:
            raise UserError(f"attack.image.version is {version!r}: choose one of {', '.join(_VERSIONS)}.")
        self.version = version

    def members(self) -> Mapping[str, ClassifierAttack]:
        """The attacks by name, in their order."""
        return {name: _MEMBERS[name](self) for name in _VERSIONS[self.version]}

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        best, best_margin = images.clone(), lowest(images)
        rows = torch.arange(len(images), device=images.device)
        for member in self.members().values():
            if self.eps == 0 or not len(rows):
                break
            clean, own, ids = images[rows], labels[rows], sample_ids[rows.to(sample_ids.device)]
            with oracle.part(rows) as part:
                found = self.budget.settle(member.mislead(part, clean.clone(), own, ids).detach(), clean)
            heights = self._margin(oracle, found, rows, own)
            best[rows], best_margin[rows] = better(found, heights, best[rows], best_margin[rows])
            rows = rows if oracle.randomised else rows[best_margin[rows] <= 0]
        return best

    @staticmethod
    def _margin(oracle: LogitOracle, images: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        passes = range(_DRAWS if oracle.randomised else 1)
        return torch.stack([margin(oracle.logits(images, rows), labels) for _ in passes]).mean(0)


def _apgd(own: AutoAttack, **changed: object) -> APGD:
    return APGD(norm=own.norm, eps=own.eps, steps=own.steps, seed=own.seed).replace(**changed)


def _fab(own: AutoAttack, **changed: object) -> FAB:
    return FAB(norm=own.norm, eps=own.eps, steps=own.steps, seed=own.seed).replace(**changed)


# Each member has the ensemble's seed: its draws are named by its own class.
_MEMBERS: Mapping[str, Callable[[AutoAttack], ClassifierAttack]] = {
    "apgd-ce": lambda own: _apgd(own),
    "apgd-t": lambda own: _apgd(own, targets=_TARGETS),
    "fab-t": lambda own: _fab(own, targets=_TARGETS),
    "square": lambda own: Square(norm=own.norm, eps=own.eps, queries=own.queries, seed=own.seed),
    "apgd-ce-5": lambda own: _apgd(own, restarts=_RESTARTS),
    "apgd-dlr-5": lambda own: _apgd(own, loss="dlr", restarts=_RESTARTS),
    "fab-5": lambda own: _fab(own, restarts=_RESTARTS),
    "eot-apgd-ce": lambda own: EOT(attack=_apgd(own), draws=_DRAWS),
    "eot-apgd-dlr": lambda own: EOT(attack=_apgd(own, loss="dlr"), draws=_DRAWS),
}
_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
    "rand": ("eot-apgd-ce", "eot-apgd-dlr"),
}
