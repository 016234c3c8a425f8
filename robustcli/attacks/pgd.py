"""Projected gradient descent (Madry et al. 2018), L-inf and L2, batched, each sample on its own.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.base import ImageAttack
from robustcli.attacks.oracle import ImageOracle
from robustcli.attacks.threat import Eps, parse_number
from robustcli.errors import UserError


class PGD(ImageAttack):
    """Steps along the sign (L-inf) or the direction (L2) of the gradient, each projected on ball and box.

    Args:
        norm, eps, loss, seed: see `ImageAttack`.
        steps: gradient evaluations of a restart; 0 leaves the start as it is.
        alpha: step size in units of [0,1] pixels; None: ``2.5 eps / steps``, but at most ``1.25 eps``, which a single
            step takes (Wong et al. 2020).
        random_start: uniform in the ball; else from the clean image.
        restarts: each from a start of its own; the best result of each sample is kept.
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
        seed: int = 0,
    ) -> None:
        super().__init__(norm=norm, eps=eps, loss=loss, seed=seed)
        self.steps = _at_least("steps", steps, 0)
        self.restarts = _at_least("restarts", restarts, 1)
        self.alpha = self._step_size(alpha)
        self.random_start = random_start
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
        best, best_loss = images, images.new_full((len(images),), -torch.inf, dtype=torch.float64)
        for restart in range(self.restarts):
            first = self._start(images, sample_ids, restart)
            if start is not None and restart == 0:
                first = self.budget.project(start, images)
            found, loss = self._descend(oracle, images, first)
            if self.restarts == 1:
                return found
            best, best_loss = _better(found, loss, best, best_loss)
        return best

    def _start(self, images: Tensor, sample_ids: Sequence[int], restart: int) -> Tensor:
        if not self.random_start:
            return images
        return self.budget.random_start(images, sample_ids, self.seed, "pgd", restart)

    def _descend(self, oracle: ImageOracle, images: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """One restart: the iterate to keep and its loss (only computed where someone reads it)."""
        rows = torch.arange(len(images), device=images.device)
        found, best, best_loss = start, start, images.new_full((len(images),), -torch.inf, dtype=torch.float64)
        for _ in range(self.steps):
            loss, gradient = oracle.gradient(found, rows)
            if self.keep == "best":
                best, best_loss = _better(found, loss, best, best_loss)
            found = self.budget.project(found + self.budget.step(gradient, self.alpha), images)
        if self.keep == "last" and self.restarts == 1:
            return found, best_loss
        loss = oracle.loss(found, rows).double()
        return (found, loss) if self.keep == "last" else _better(found, loss, best, best_loss)


def _better(found: Tensor, loss: Tensor, best: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample the one of higher loss; a NaN never wins."""
    higher = loss.double() > best_loss
    return torch.where(higher.view(-1, 1, 1, 1), found, best), torch.where(higher, loss.double(), best_loss)


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"attack.image.{name} is {value!r}: expected a whole number, {least} or more.")
    return value
