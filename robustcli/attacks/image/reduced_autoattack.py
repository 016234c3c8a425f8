"""The reduced AutoAttack by which Serez et al. 2025 (arXiv 2412.03453) judge purification: minimum L2 norms.

Shapes: N samples, B of them, C channels, H height, W width, Y classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import parse_eps
from robustcli.attacks.core.base import ClassifierAttack, MinimumNormAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least

_DLR_CLASSES = 4  # the DLR loss compares with the third-highest logit of another class


@dataclass(frozen=True, kw_only=True)
class ReducedAutoAttack(MinimumNormAttack):
    """Nearest success of APGD on cross-entropy, APGD on DLR (of more than three classes) and FAB.

    Weaker than AutoAttack: neither Square nor targeted members. Each APGD is run at a few radii, and an image that is
    fooled within one is not attacked at a larger one.

    Args:
        cross_entropy, dlr: radii of the two APGD; the paper's are .5, 1, 4 and .5, 2, 4.
        steps: of APGD. fab_steps: of FAB.
        norm: ``l2``, that of the radii.
        eps, seed: see `MinimumNormAttack`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    cross_entropy: Sequence[Number] = (0.5, 1, 4)
    dlr: Sequence[Number] = (0.5, 2, 4)
    steps: int = 64
    fab_steps: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("cross_entropy", "dlr"):
            radii = (parse_eps(radius, "l2", node="attack", key=key) for radius in getattr(self, key))
            self._store(**{key: tuple(sorted(radii))})
        at_least("steps", self.steps, 0)
        at_least("fab_steps", self.fab_steps, 0)
        self.check(self.threat)

    def check(self, threat: ThreatModel) -> None:
        if threat.norm != "l2":
            raise UserError(
                f"threat.norm is {threat.norm!r}, but the reduced AutoAttack is for l2: choose threat=smallest, or "
                "threat.norm=l2 with its threat.eps; attack=autoattack is for both norms."
            )

    def passes(self, problem: Problem) -> Passes:
        total = update(problem).bounded()
        for _, _, member in self._members(problem.classes, randomised=problem.randomised):
            spent = member.passes(problem)
            assert spent is not None  # all of them are ours
            total += spent + update(problem)
        return total

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best = NearestAdversarials(images, labels, threat.ball, oracle, enough=threat.radius)
        all_rows = torch.arange(len(images), device=images.device)
        logits = oracle.logits(images, all_rows)
        best.update(images, all_rows, logits)
        for name, radius, member in self._members(logits.shape[1], randomised=oracle.randomised):
            rows = all_rows[best.unfinished(all_rows) & (best.norm > (radius or 0.0))]
            if not len(rows):
                continue
            clean, ids, threat_of_member = (
                images[rows],
                sample_ids[rows.to(sample_ids.device)],
                threat.at(threat.radius if radius is None else radius),
            )
            with oracle.part(rows) as part:
                x_adv = member.search(part, clean, labels[rows], ids, threat_of_member).detach()
            x_adv = member.settle(x_adv, clean, threat_of_member)
            previous = best.norm[rows]
            best.update(x_adv, rows, oracle.logits(x_adv, rows))
            oracle.credit(name, rows[best.norm[rows] < previous])
        return best.images

    def _members(self, classes: int, *, randomised: bool) -> Iterator[tuple[str, float | None, ClassifierAttack]]:
        """Each with its name and its radius, within which it has nothing to add; None: that of the threat model."""
        losses = {"cross_entropy": self.cross_entropy, **({"dlr": self.dlr} if classes >= _DLR_CLASSES else {})}
        for loss, radii in losses.items():
            # A success of a single draw proves nothing: against a randomised model every step is taken.
            member = APGD(steps=self.steps, loss=loss, early_stop=not randomised, seed=self.seed)
            name = "apgd-ce" if loss == "cross_entropy" else "apgd-dlr"
            yield from ((name, float(radius), member) for radius in radii)
        yield "fab", None, FAB(steps=self.fab_steps, seed=self.seed)
