"""Projected gradient descent (Madry et al. 2018), L-inf and L2, batched, each sample on its own.

Shapes: N images, B of them not fooled yet, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.passes import Passes, Problem, both, forward
from robustcli.attacks.core.restarts import best_of, better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least, one_of, parse_number


@dataclass(frozen=True, kw_only=True)
class PGD(ImageAttack):
    """PGD: steps along the sign (L-inf) or the direction (L2) of the gradient, each projected onto ball and box.

    Args:
        steps: gradient evaluations of a restart; 0 leaves the start as it is.
        alpha: step size in units of [0,1] pixels; None: ``2.5 eps / steps``, but at most ``1.25 eps``, the size of a
            single step (Wong et al. 2020).
        random_start: uniform in the ball; else from the clean image.
        restarts: each from a start of its own, for the samples that are not fooled yet; the best result of each is
            kept.
        momentum: decay factor of MI-FGSM (Dong et al. 2018, algorithm 1), 0 or more: gradients are accumulated with an
            L1 norm of 1 each. 0: none.
        keep: ``best``, the iterate of highest loss, for one more forward pass, or ``last``, the field's usual; None:
            ``best``, but ``last`` under ``loss="infonce"``, whose rows move together.
        norm, eps, loss, early_stop, seed: see `ImageAttack`; a sample that leaves early keeps the iterate that
            fools the model.

    Raises:
        UserError: a hyper-parameter out of range, or restarts that would all be the same.
    """

    steps: int = 10
    alpha: Number | None = None
    random_start: bool = True
    restarts: int = 1
    momentum: float = 0.0
    keep: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        at_least("restarts", self.restarts, 1)
        self._store(
            alpha=None if self.alpha is None else parse_number("alpha", self.alpha),
            momentum=parse_number("momentum", self.momentum),
            keep=one_of("keep", self.keep or ("last" if self.loss == "infonce" else "best"), ("best", "last")),
        )
        if self.restarts > 1 and not self.random_start:
            raise UserError(
                f"attack.restarts is {self.restarts}, but all of them would start at the clean image: "
                "set random_start=true or restarts=1."
            )
        if self.loss == "infonce" and (self.keep == "best" or self.restarts > 1):
            raise UserError("attack.loss=infonce moves all images together: set keep=last and restarts=1.")

    def step_size(self, eps: float) -> float:
        """Step size in a ball of radius ``eps``, both in units of [0,1] pixels."""
        if self.alpha is not None:
            return float(self.alpha)
        return min(1.25 * eps, 2.5 * eps / max(self.steps, 1))

    def crosses(self, eps: float) -> bool:
        """True if all steps together reach from the clean image to the boundary of a ball of radius ``eps``.

        Also if there are none, which is a start and no search.
        """
        return not self.steps or self.steps * self.step_size(eps) >= eps * (1 - 1e-9)  # of 20/255 by 10 steps of 2/255

    def passes(self, problem: Problem) -> Passes:
        last = forward(0 if self.keep == "last" and self.restarts == 1 else 1)
        return ((both(self.steps) + last) * self.restarts).bounded(self.early_stop and problem.stops_early)

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        ball = threat.ball

        def search(rows: Tensor, restart: int) -> tuple[Tensor, Tensor]:
            clean, ids = images, sample_ids
            if len(rows) < len(images):
                clean, ids = images[rows], [sample_ids[row] for row in rows.tolist()]
            if start is not None and restart == 0:
                x_start = ball.project(start, images)
            elif self.random_start:
                x_start = ball.random_start(clean, ids, self.seed, "pgd", restart)
            else:
                x_start = clean
            return self._restart(oracle, _Iterates.start_at(clean, x_start, rows), ball)

        return best_of(oracle, images, self.restarts, search)

    def _restart(self, oracle: ImageOracle, iterates: "_Iterates", ball: Ball) -> tuple[Tensor, Tensor]:
        """One restart: images (B,C,H,W) and their losses (B,), which are minus infinity where nobody reads them."""
        fooled_parts, step_size = [], self.step_size(ball.eps)
        for _ in range(self.steps):  # a forward and a backward pass
            loss, gradient = oracle.gradient(iterates.x_adv, iterates.rows)
            if self.keep == "best":
                iterates.x_best, iterates.loss_best = better(iterates.x_adv, loss, iterates.x_best, iterates.loss_best)
            # The pass that gives the gradient also tells which iterates fool: those leave, at no further cost.
            fooled = oracle.is_fooled(iterates.rows)
            if bool(fooled.any()):
                fooled_parts.append((iterates.positions[fooled], iterates.x_adv[fooled], loss[fooled].double()))
                iterates, gradient = iterates.subset(~fooled), gradient[~fooled]
                if not len(iterates.rows):
                    break
            if self.momentum:  # MI-FGSM: gradients of an L1 norm of 1 are accumulated
                l1_norm = gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)
                gradient = self.momentum * iterates.accumulated + gradient / l1_norm.view(-1, 1, 1, 1)
                iterates.accumulated = gradient
            iterates.x_adv = ball.project(iterates.x_adv + ball.step(gradient, step_size), iterates.clean)
        x_adv, loss = self._selected(oracle, iterates)
        if not fooled_parts:
            return x_adv, loss
        positions, images, losses = (
            torch.cat(pieces) for pieces in zip(*fooled_parts, (iterates.positions, x_adv, loss), strict=True)
        )
        order = positions.argsort()
        return images[order], losses[order]

    def _selected(self, oracle: ImageOracle, iterates: "_Iterates") -> tuple[Tensor, Tensor]:
        """Result of each sample that no iterate before the last one has fooled: its last or its best iterate."""
        if not len(iterates.rows) or (self.keep == "last" and self.restarts == 1):
            return iterates.x_adv, iterates.loss_best
        # One more forward pass: no gradient pass has seen the last iterate.
        loss = oracle.loss(iterates.x_adv, iterates.rows).double()
        if self.keep == "last":
            return iterates.x_adv, loss
        loss = torch.where(oracle.is_fooled(iterates.rows), torch.inf, loss)
        return better(iterates.x_adv, loss, iterates.x_best, iterates.loss_best)


@dataclass
class _Iterates:
    """Iterates of the samples that are not fooled yet; each field has their number B as its first dimension.

    Attributes:
        rows, positions: in the oracle, and in the result of this restart.
        x_adv, x_best, loss_best: the current iterate, and the best one with its loss.
        accumulated: gradient of MI-FGSM.
    """

    rows: Tensor
    positions: Tensor
    clean: Tensor
    x_adv: Tensor
    x_best: Tensor
    loss_best: Tensor
    accumulated: Tensor

    @classmethod
    def start_at(cls, clean: Tensor, x_start: Tensor, rows: Tensor) -> "_Iterates":
        """All samples at their start; the best loss is minus infinity."""
        positions, accumulated = torch.arange(len(rows), device=rows.device), x_start.new_zeros(()).expand_as(x_start)
        return cls(rows, positions, clean, x_start, x_start, lowest(x_start), accumulated)

    def subset(self, mask: Tensor) -> "_Iterates":
        """The samples of ``mask`` (B,) bool."""
        return _Iterates(**{name: values[mask] for name, values in vars(self).items()})
