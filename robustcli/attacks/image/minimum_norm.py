"""An ensemble of searches for the smallest perturbation, which keeps the nearest success of each sample.

Shapes: N samples, B of them, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.alma import ALMA
from robustcli.attacks.image.cw import CW
from robustcli.attacks.image.ddn import DDN
from robustcli.attacks.image.deepfool import DeepFool
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.fmn import FMN
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.utils.numbers import at_least, one_of


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(MinimumNormAttack):
    """Nearest success of DeepFool, FMN, DDN, ALMA, C&W and FAB; for L-inf of those that know it.

    Args:
        members: names out of ``deepfool``, ``fmn``, ``ddn``, ``alma``, ``cw``, ``fab``, in their order.
        steps: of every member but DeepFool, whose are 50 at most.
        norm, seed: see `MinimumNormAttack`.
        eps: as there; a sample that is fooled within it is left to no further member.

    Raises:
        UserError: an unknown member.
    """

    members: Sequence[str] = ("deepfool", "fmn", "ddn", "alma", "cw", "fab")
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        self._store(members=tuple(one_of("members", name, tuple(_MEMBERS)) for name in self.members))

    def passes(self, problem: Problem) -> Passes:
        total = Passes(at_most=True)
        for name in self.members:
            if problem.norm == "l2" or name not in _L2_ALONE:
                spent = _MEMBERS[name](self).passes(problem)
                assert spent is not None  # all of them are ours
                total += spent + update(problem)
        return total

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best = NearestAdversarials(images, labels, threat.ball, oracle, enough=threat.radius)
        all_rows = torch.arange(len(images), device=images.device)
        for name in self.members:
            rows = all_rows[best.unfinished(all_rows)]
            if not len(rows) or (threat.norm != "l2" and name in _L2_ALONE):
                continue
            ids = sample_ids[rows.to(sample_ids.device)]
            with oracle.part(rows) as part:
                x_adv = _MEMBERS[name](self).search(part, images[rows], labels[rows], ids, threat).detach()
            previous = best.norm[rows]
            best.update(x_adv, rows, oracle.logits(x_adv, rows))
            oracle.credit(name, rows[best.norm[rows] < previous])
        return best.images


_L2_ALONE = ("ddn", "alma", "cw")
_MEMBERS: Mapping[str, Callable[[MinimumNorm], MinimumNormAttack]] = {
    "deepfool": lambda ensemble: DeepFool(seed=ensemble.seed),
    "fmn": lambda ensemble: FMN(steps=ensemble.steps, seed=ensemble.seed),
    "ddn": lambda ensemble: DDN(steps=ensemble.steps, seed=ensemble.seed),
    "alma": lambda ensemble: ALMA(steps=2 * ensemble.steps, seed=ensemble.seed),
    "cw": lambda ensemble: CW(steps=ensemble.steps, seed=ensemble.seed),
    "fab": lambda ensemble: FAB(steps=ensemble.steps, targets=9, seed=ensemble.seed),
}
