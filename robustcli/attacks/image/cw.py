"""The L2 attack of Carlini and Wagner (2017), every sample with a constant c, an Adam and an early stop of its own.

Shapes: N samples, B of them, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.class_losses import LogitScale, margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.nearest import NearestAdversarials, update
from robustcli.attacks.image.refined import RefinedMinimumNorm
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

_INSIDE = 1 - 1e-6  # of [-1,1]; at its ends the derivative of the sine is 0
_CHECKS = 10  # of progress, in a descent
_PROGRESS = 0.9999  # of the lowest loss before; a loss above is no progress
_PATIENCE = 1  # checks without progress that a sample may have in a row
_HALVINGS = 8  # forward passes of the bisection after a search, which undoes the overshoot of Adam's steps
_START_RADIUS = 0.5  # L2, of a random start where no success bounds it
_DECAY = (0.9, 0.999)  # of Adam's moments


@dataclass(frozen=True, kw_only=True)
class CW(RefinedMinimumNorm):
    """C&W: Adam on ``|x - clean|^2 + c max(kappa - margin, 0)`` over ``w``, where ``x = (sin(w) + 1) / 2``.

    The paper has a tanh there, whose gradient vanishes at black and white pixels: on handwritten digits the smallest
    perturbation is a third larger with it, and on some none is found. Both have the same derivative in the middle, so
    that ``lr`` means the same.

    The nearest success among all iterates is kept, whatever its ``c``, and after each search bisected
    to the decision boundary, which the paper does not do.

    Args:
        c: weight of the margin; of the first descent, where it is searched for.
        kappa: confidence: margin of the logits that the descent aims at; an iterate counts as soon as it fools the
            model.
        steps: of a descent, at most.
        lr: Adam's step size, in the space of ``w``.
        search_steps: descents of the search for ``c``: ten times more as long as there is no success, then
            bisection; 1: ``c`` is fixed.
        restarts: searches; the first starts at the clean image, the others at random, half as far as the best norm so
            far.
        norm: ``l2``.
        refine, eps, seed: see `RefinedMinimumNorm`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    c: float = 1e-2
    kappa: float = 0.0
    steps: int = 100
    lr: float = 1e-2
    search_steps: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(**{key: parse_number(key, getattr(self, key)) for key in ("c", "kappa", "lr")})
        at_least("steps", self.steps, 0)
        at_least("search_steps", self.search_steps, 1)
        at_least("restarts", self.restarts, 1)
        if self.c == 0:
            raise UserError("attack.c is 0: nothing would be attacked, give more, such as 0.01.")
        self.check(self.threat)

    def check(self, threat: ThreatModel) -> None:
        if threat.norm != "l2":
            raise UserError(
                f"threat.norm is {threat.norm!r}, but Carlini and Wagner's attack is for l2: threat=smallest, or "
                "threat.norm=l2 with its threat.eps; attack=fmn is for both norms."
            )

    def approach_passes(self, problem: Problem) -> Passes:
        descents = (update(problem) + Passes(backward=1)) * (self.search_steps * self.steps)
        return ((descents + update(problem) * _HALVINGS) * self.restarts).bounded()

    def approach(self, oracle: LogitOracle, best: NearestAdversarials, sample_ids: Tensor, threat: ThreatModel) -> None:
        images, scale = best.clean, LogitScale(best.labels)
        rows = torch.arange(len(images), device=images.device)
        for restart in range(self.restarts):
            start = _to_sine_space(best.first_iterates(rows, sample_ids, _START_RADIUS, self.seed, "cw", restart))
            search_of_c = _SearchOfC(images.new_full((len(images),), self.c))
            for _ in range(self.search_steps):
                search_of_c.update_c(self._descend(oracle, best, start, search_of_c.c, scale))
            best.bisect(oracle, _HALVINGS)

    def _descend(
        self, oracle: LogitOracle, best: NearestAdversarials, start: Tensor, c: Tensor, scale: LogitScale
    ) -> Tensor:
        """One descent, (N,) bool: some iterate of the sample has fooled the model."""
        fooled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        rows, w, adam = torch.arange(len(start), device=start.device), start, _Adam(start, self.lr)
        abort_early = _AbortEarly(best.norm)
        for step in range(self.steps):  # a forward and a backward pass
            loss, gradient, fooled_now = self._loss(oracle, best, w, rows, c, scale)
            fooled[rows] |= fooled_now
            w = adam.step(w, gradient)
            abort_early.record(loss)
            if (step + 1) % max(self.steps // _CHECKS, 1) == 0:
                improving = abort_early.still_improving(best.norm[rows])
                rows, w = rows[improving], w[improving]
                adam.keep(improving)
            if not len(rows):
                break
        return fooled

    def _loss(
        self, oracle: LogitOracle, best: NearestAdversarials, w: Tensor, rows: Tensor, c: Tensor, scale: LogitScale
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,), its gradient (B,C,H,W) by ``w``, and (B,) bool: the image fools the model."""
        images, labels, weight = _to_pixels(w), best.labels[rows], c[rows]
        # Gradient of the margin itself, not of its hinge: a zero then means that the model gave none, and is counted.
        logits, margins, margin_gradient = oracle.gradient(
            images, rows, lambda logits, _: margin(scale(logits, rows), labels)
        )
        fooled, delta = best.update(images, rows, logits), images - best.clean[rows]
        shortfall = self.kappa - margins
        weight_if_short = torch.where(shortfall > 0, weight, 0.0).view(-1, 1, 1, 1)
        loss = delta.square().flatten(1).sum(1) + weight * shortfall.clamp(min=0)
        # Chain rule by hand: dx/dw = cos(w) / 2.
        return loss, (2 * delta - weight_if_short * margin_gradient) * w.cos() / 2, fooled


class _SearchOfC:
    """Search for ``c`` (N,), of each sample on its own: times ten until a success, then bisection."""

    def __init__(self, c: Tensor) -> None:
        self.c, self._lower, self._upper = c, torch.zeros_like(c), torch.full_like(c, torch.inf)

    def update_c(self, fooled: Tensor) -> None:
        """Set the next ``c``, given the samples (N,) that the last one has ``fooled``."""
        self._upper = torch.where(fooled, self.c, self._upper)
        self._lower = torch.where(fooled, self._lower, self.c)
        middle = (self._lower + self._upper) / 2
        self.c = torch.where(self._upper < torch.inf, middle, 10 * self.c)


class _AbortEarly:
    """Early stop of samples without progress: neither their loss falls nor their norm; one check without is tolerated.

    The path of Adam oscillates: after the first success it goes on for a while before it turns to the clean image.
    """

    def __init__(self, norm: Tensor) -> None:
        self._last_norm, self._lowest = norm.clone(), torch.full_like(norm, torch.inf)
        self._lowest_since_check, self._idle = self._lowest.clone(), torch.zeros_like(norm)

    def record(self, loss: Tensor) -> None:
        """Record the loss (B,) of an iterate; the lowest since the last check counts."""
        self._lowest_since_check = torch.minimum(self._lowest_since_check, loss)

    def still_improving(self, norm: Tensor) -> Tensor:
        """(B,) bool: the samples that go on, given their best norms (B,); the state of the others is dropped."""
        improved = (self._lowest_since_check <= _PROGRESS * self._lowest) | (
            (norm <= _PROGRESS * self._last_norm) & (norm < torch.inf)
        )
        idle = torch.where(improved, 0.0, self._idle + 1)
        kept = idle <= _PATIENCE
        self._lowest, self._idle = torch.minimum(self._lowest, self._lowest_since_check)[kept], idle[kept]
        self._last_norm, self._lowest_since_check = norm[kept].clone(), torch.full_like(self._lowest, torch.inf)
        return kept


class _Adam:
    """Adam (Kingma and Ba 2015) for samples that leave at different times; no entry reads another."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self._first_moment, self._second_moment = torch.zeros_like(like), torch.zeros_like(like)
        self._lr, self._steps = lr, 0

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        """``w`` after one more step, with the bias correction of the paper."""
        self._steps += 1
        beta1, beta2 = _DECAY
        self._first_moment.lerp_(gradient, 1 - beta1)
        self._second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (self._second_moment / (1 - beta2**self._steps)).sqrt_().add_(1e-8)
        return w - self._lr / (1 - beta1**self._steps) * self._first_moment / scale

    def keep(self, kept: Tensor) -> None:
        """Drop the state of the samples that are not ``kept`` (B,)."""
        self._first_moment, self._second_moment = self._first_moment[kept], self._second_moment[kept]


def _to_pixels(w: Tensor) -> Tensor:
    return (w.sin() + 1) / 2


def _to_sine_space(images: Tensor) -> Tensor:
    """``w`` of images in [0,1], shrunk off the ends."""
    return torch.asin((2 * images - 1) * _INSIDE)
