"""Searches for the smallest perturbation that end with a walk along the decision boundary.

Shapes: N samples, B of them, C channels, H height, W width.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Linf
from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem, both
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.hyperplane import Hyperplane, biased_step
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.utils.numbers import at_least

_HALVINGS = 8  # forward passes of the bisection after a search
_FAR_STARTS, _FAR_STEPS, _FAR_STEP = 6, 40, 0.05  # of the search for any success at all; L-inf
_ALPHA_MAX, _ETA, _BETA = 0.1, 1.05, 0.9  # of FAB


@dataclass(frozen=True, kw_only=True)
class RefinedMinimumNorm(MinimumNormAttack):
    """Base class of searches whose result is refined.

    A sample without a success is attacked by long steps that read no norm, for on a robust network the boundary may
    be farther than a search reaches. The segment to the clean image is bisected, and from its boundary FAB's steps
    go on to a nearer one.

    Args:
        refine: steps along the boundary, two forward passes and a backward pass each; 0: the search alone, as it was
            published.
        norm, eps, seed: see `MinimumNormAttack`.
    """

    refine: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("refine", self.refine, 0)

    @abstractmethod
    def approach_passes(self, problem: Problem) -> Passes:
        """Passes of `approach` for one image."""

    def passes(self, problem: Problem) -> Passes:
        search = self.approach_passes(problem)
        if not self.refine:
            return search
        gradient = update(problem) + Passes(backward=1)
        along = (update(problem) + both(1)) * self.refine
        return (search + gradient * (_FAR_STARTS * _FAR_STEPS) + update(problem) * _HALVINGS + along).bounded()

    @abstractmethod
    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        """The search itself: every success goes into ``best``, whose clean images and labels are those of the call."""

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best = NearestAdversarials(images, labels, threat.ball, oracle)
        self.approach(oracle, best, sample_ids, threat)
        if self.refine:
            for start in range(_FAR_STARTS):
                self._reach(oracle, best, sample_ids, start)
            best.bisect(oracle, _HALVINGS)
            self._follow_boundary(oracle, best, threat)
        return best.images

    def _reach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, start: int) -> None:
        """Any success of the samples that have none, however far, from the clean image (start 0) or from noise."""
        rows, far = torch.nonzero(best.norm == torch.inf).flatten(), Linf(1.0)
        x_adv = best.clean[rows]
        if start and len(rows):
            ids = sample_ids[rows.to(sample_ids.device)].tolist()
            x_adv = sample_noise(x_adv.shape[1:], ids, self.seed, "reach", start).to(x_adv)
        for _ in range(_FAR_STEPS):  # a forward and a backward pass
            if not len(rows):
                return
            logits, _, gradient = oracle.gradient(x_adv, rows, lambda logits, asked: margin(logits, best.labels[asked]))
            unfooled = ~best.update(x_adv, rows, logits)
            x_adv = (x_adv + far.step(gradient, _FAR_STEP)).clamp(0, 1)[unfooled]
            rows = rows[unfooled]

    def _follow_boundary(self, oracle: LogitOracle, best: NearestAdversarials, threat: ThreatModel) -> None:
        """FAB's steps from the nearest adversarial images, towards the class that is ahead."""
        rows = torch.nonzero((best.norm > 0) & (best.norm < torch.inf)).flatten()
        x_adv, clean, labels = best.images[rows], best.clean[rows], best.labels[rows]
        for _ in range(self.refine if len(rows) else 0):
            logits, gap, gradient = oracle.gradient(x_adv, rows, lambda logits, _: margin(logits, labels))
            hyperplane = Hyperplane(gap - 2 * best.least_margin(logits, rows), gradient)
            x_adv = biased_step(x_adv, clean, hyperplane, threat.ball, alpha_max=_ALPHA_MAX, eta=_ETA)
            fooled = best.update(x_adv, rows, oracle.logits(x_adv, rows)).view(-1, 1, 1, 1)
            x_adv = torch.where(fooled, clean + _BETA * (x_adv - clean), x_adv)
