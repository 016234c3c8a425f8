"""Projected gradient descent (Madry et al. 2018), L-inf and L2, batched, each sample on its own.

Shapes: N images, B of them that still stand, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.restarts import best_of, better, lowest
from robustcli.attacks.core.threat import Eps, at_least, parse_number
from robustcli.utils.errors import UserError


class PGD(ImageAttack):
    """Steps along the sign (L-inf) or the direction (L2) of the gradient, each projected on ball and box.

    Args:
        norm, eps, loss, early_stop, seed: see `ImageAttack`; a sample that leaves early keeps the iterate that fools.
        steps: gradient evaluations of a restart; 0 leaves the start as it is.
        alpha: step size in units of [0,1] pixels; None: ``2.5 eps / steps``, but at most ``1.25 eps``, which a single
            step takes (Wong et al. 2020).
        random_start: uniform in the ball; else from the clean image.
        restarts: each from a start of its own, for the samples that still stand; the best result of each is kept.
        momentum: share of the last direction in the next, 0 or more; gradients are then summed with an L1 length of 1
            each (MI-FGSM, Dong et al. 2018, algorithm 1). 0: none.
        keep: ``best``, the iterate of highest loss, for one more forward pass, or ``last``, the field's usual; None:
            ``best``, but ``last`` under ``loss="infonce"``, whose rows move together.

    Raises:
        UserError: a hyper-parameter out of range, or restarts that would all be the same.
    """

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: Eps = "4/255",
        steps: int = 10,
        alpha: Eps | None = None,
        loss: str = "gallery",
        random_start: bool = True,
        restarts: int = 1,
        keep: str | None = None,
        momentum: float = 0.0,
        early_stop: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(norm=norm, eps=eps, loss=loss, early_stop=early_stop, seed=seed)
        self.steps = at_least("steps", steps, 0)
        self.restarts = at_least("restarts", restarts, 1)
        self.alpha = self._step_size(alpha)
        self.random_start, self.momentum = random_start, parse_number("momentum", momentum)
        self.keep = keep or ("last" if loss == "infonce" else "best")
        self._check()

    def _step_size(self, alpha: Eps | None) -> float:
        if alpha is None:
            return min(1.25 * self.eps, 2.5 * self.eps / max(self.steps, 1))
        return parse_number("alpha", alpha)

    def _check(self) -> None:
        if self.keep not in ("best", "last"):
            raise UserError(f"attack.image.keep is {self.keep!r}: choose best or last.")
        if self.restarts > 1 and not self.random_start:
            raise UserError(
                f"attack.image.restarts is {self.restarts}, but all of them would start at the clean image: "
                "set random_start=true or restarts=1."
            )
        if self.loss == "infonce" and (self.keep == "best" or self.restarts > 1):
            raise UserError("attack.image.loss=infonce moves all images together: set keep=last and restarts=1.")

    def find(self, oracle: ImageOracle, images: Tensor, sample_ids: Sequence[int], start: Tensor | None) -> Tensor:
        def search(rows: Tensor, restart: int) -> tuple[Tensor, Tensor]:
            every = len(rows) == len(images)
            clean, ids = (images, sample_ids) if every else (images[rows], [sample_ids[row] for row in rows.tolist()])
            if start is not None and restart == 0:
                first = self.budget.project(start, images)
            else:
                first = self._start(clean, ids, restart)
            return self._descend(oracle, _Walk.begin(clean, first, rows))

        return best_of(oracle, images, self.restarts, search)

    def _start(self, images: Tensor, sample_ids: Sequence[int], restart: int) -> Tensor:
        if not self.random_start:
            return images
        return self.budget.random_start(images, sample_ids, self.seed, "pgd", restart)

    def _descend(self, oracle: ImageOracle, walk: "_Walk") -> tuple[Tensor, Tensor]:
        """One restart: the images to keep and their losses (only computed where someone reads them)."""
        done = []
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
            walk.now = self.budget.project(walk.now + self._step(walk, gradient), walk.clean)
        found, loss = self._kept(oracle, walk)
        if not done:
            return found, loss
        places, images, losses = (torch.cat(parts) for parts in zip(*done, (walk.places, found, loss), strict=True))
        order = places.argsort()
        return images[order], losses[order]

    def _step(self, walk: "_Walk", gradient: Tensor) -> Tensor:
        if self.momentum:
            size = gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            walk.velocity = gradient = self.momentum * walk.velocity + gradient / size.view(-1, 1, 1, 1)
        return self.budget.step(gradient, self.alpha)

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
