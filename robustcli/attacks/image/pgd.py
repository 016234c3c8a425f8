"""Projected gradient descent (Madry et al. 2018), L-inf and L2, batched, each sample on its own.

Shapes: N images, B of them that still stand, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.restarts import best_of, better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least, one_of, parse_number


@dataclass(frozen=True, kw_only=True)
class PGD(ImageAttack):
    """Steps along the sign (L-inf) or the direction (L2) of the gradient, each projected on ball and box.

    Args:
        steps: gradient evaluations of a restart; 0 leaves the start as it is.
        alpha: step size in units of [0,1] pixels; None: ``2.5 eps / steps``, but at most ``1.25 eps``, which a single
            step takes (Wong et al. 2020).
        random_start: uniform in the ball; else from the clean image.
        restarts: each from a start of its own, for the samples that still stand; the best result of each is kept.
        momentum: share of the last direction in the next, 0 or more; gradients are then summed with an L1 length of 1
            each (MI-FGSM, Dong et al. 2018, algorithm 1). 0: none.
        keep: ``best``, the iterate of highest loss, for one more forward pass, or ``last``, the field's usual; None:
            ``best``, but ``last`` under ``loss="infonce"``, whose rows move together.
        norm, eps, loss, early_stop, seed: see `ImageAttack`; a sample that leaves early keeps the iterate that fools.

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
        """The step in a ball of radius ``eps``, in units of [0,1] pixels."""
        if self.alpha is not None:
            return float(self.alpha)
        return min(1.25 * eps, 2.5 * eps / max(self.steps, 1))

    def crosses(self, eps: float) -> bool:
        """Whether all steps together reach from the clean image to the rim of a ball of radius ``eps``."""
        return self.steps * self.step_size(eps) >= eps

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
            every = len(rows) == len(images)
            clean, ids = (images, sample_ids) if every else (images[rows], [sample_ids[row] for row in rows.tolist()])
            if start is not None and restart == 0:
                first = ball.project(start, images)
            elif self.random_start:
                first = ball.random_start(clean, ids, self.seed, "pgd", restart)
            else:
                first = clean
            return self._climb(oracle, _Walk.begin(clean, first, rows), ball)

        return best_of(oracle, images, self.restarts, search)

    def _climb(self, oracle: ImageOracle, walk: "_Walk", ball: Ball) -> tuple[Tensor, Tensor]:
        """One restart: the images to keep and their losses (only computed where someone reads them)."""
        done, alpha = [], self.step_size(ball.eps)
        for _ in range(self.steps):
            loss, gradient = oracle.gradient(walk.now, walk.rows)
            if self.keep == "best":
                walk.best, walk.best_loss = better(walk.now, loss, walk.best, walk.best_loss)
            fooled = oracle.done(walk.rows)
            if bool(fooled.any()):
                done.append((walk.places[fooled], walk.now[fooled], loss[fooled].double()))
                walk, gradient = walk.part(~fooled), gradient[~fooled]
                if not len(walk.rows):
                    break
            if self.momentum:  # MI-FGSM: gradients of length 1 in L1 are summed
                size = gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)
                walk.velocity = gradient = self.momentum * walk.velocity + gradient / size.view(-1, 1, 1, 1)
            walk.now = ball.project(walk.now + ball.step(gradient, alpha), walk.clean)
        found, loss = self._kept(oracle, walk)
        if not done:
            return found, loss
        places, images, losses = (torch.cat(parts) for parts in zip(*done, (walk.places, found, loss), strict=True))
        order = places.argsort()
        return images[order], losses[order]

    def _kept(self, oracle: ImageOracle, walk: "_Walk") -> tuple[Tensor, Tensor]:
        """The image to keep of each sample that was not fooled before the last step."""
        if not len(walk.rows) or (self.keep == "last" and self.restarts == 1):
            return walk.now, walk.best_loss
        loss = oracle.loss(walk.now, walk.rows).double()
        if self.keep == "last":
            return walk.now, loss
        return better(walk.now, torch.where(oracle.done(walk.rows), torch.inf, loss), walk.best, walk.best_loss)


@dataclass
class _Walk:
    """Where the samples that still stand are; each field has their number as its first dimension.

    Attributes:
        rows, places: in the oracle, and in the result of this restart.
        now, best, best_loss: this iterate, the best one and its loss. velocity: the momentum.
    """

    rows: Tensor
    places: Tensor
    clean: Tensor
    now: Tensor
    best: Tensor
    best_loss: Tensor
    velocity: Tensor

    @classmethod
    def begin(cls, clean: Tensor, first: Tensor, rows: Tensor) -> "_Walk":
        """All at their start."""
        places, velocity = torch.arange(len(rows), device=rows.device), first.new_zeros(()).expand_as(first)
        return cls(rows, places, clean, first, first, lowest(first), velocity)

    def part(self, kept: Tensor) -> "_Walk":
        """The samples that are ``kept`` (B,) bool."""
        return _Walk(**{name: values[kept] for name, values in vars(self).items()})
