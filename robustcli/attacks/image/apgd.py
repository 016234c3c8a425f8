"""Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", section 3 and algorithm 1), L-inf and L2, each sample with a step size of its own.

Shapes: N samples, B samples that still stand, Y classes, K targets, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.class_losses import dlr_targeted, margin
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import Evaluated, ImageObjective, ImageOracle, LogitOracle, folds
from robustcli.attacks.core.restarts import best_of, better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.seeding import derive_seed

_MOMENTUM = 0.75  # alpha of the paper: the share of the step that is new


@dataclass(frozen=True, kw_only=True)
class APGD(ImageAttack):
    """PGD with momentum that halves a sample's step, and returns to its best iterate, where progress ends.

    Args:
        steps: gradient evaluations of a restart, and of a target; 0 leaves the start as it is.
        restarts: each from a start of its own, for the samples that still stand.
        rho: share of the steps since the last checkpoint that must raise the loss, in (0,1).
        targets: 0: raise ``loss``. Above 0, on classifiers alone: the targeted DLR towards each of that many wrong
            classes of highest clean logit in turn, for the samples that still stand; all of them if there are fewer.
        norm, eps, loss, early_stop, seed: see `ImageAttack`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    targets: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 0)
        at_least("restarts", self.restarts, 1)
        at_least("targets", self.targets, 0)
        self._store(rho=parse_number("rho", self.rho))
        if not 0 < self.rho < 1:
            raise UserError(f"attack.rho is {self.rho}: expected a share between 0 and 1, such as 0.75.")
        if self.loss == "infonce":
            raise UserError("attack.loss=infonce moves all images together, so a step of one's own means nothing.")

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
            clean, ids = images[rows], [sample_ids[row] for row in rows.tolist()]
            if start is not None and restart == 0:
                first = ball.project(start, clean)  # the rows of restart 0 are all of them
            else:
                first = ball.random_start(clean, ids, self.seed, "apgd", restart)
            return self._climb(oracle, clean, first, rows, ball)

        return best_of(oracle, images, self.restarts, search)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        if not self.targets:
            return super().search(oracle, images, labels, sample_ids, threat)
        rows, tell = torch.arange(len(images), device=images.device), self.early_stop and not oracle.randomised
        ranked = _wrong_classes(oracle.logits(images, rows), labels)[:, : self.targets]
        best, best_margin, done = images.clone(), lowest(images), 0
        while len(rows) and done < ranked.shape[1]:
            clean = images[rows]
            numbers = range(done, min(done + folds(clean), ranked.shape[1]))
            wide, counter = rows.repeat(len(numbers)), QueryCounter.of(len(numbers) * len(rows))
            own, ids = labels[wide], sample_ids[rows.to(sample_ids.device)]
            towards = torch.cat([ranked[rows, number] for number in numbers])
            found = self._aim(LogitOracle(oracle.model, counter), clean, own, ids, towards, numbers, threat, tell=tell)
            heights = margin(LogitOracle(oracle.model, counter).logits(found, torch.arange(len(wide))), own)
            # One target after the other, as if none had been tried before the last had failed.
            for places in torch.arange(len(wide), device=rows.device).view(len(numbers), -1):
                standing = best_margin[rows] <= 0 if tell else torch.ones_like(rows, dtype=torch.bool)
                places, left = places[standing], rows[standing]
                best[left], best_margin[left] = better(found[places], heights[places], best[left], best_margin[left])
                oracle.counter.add(counter.part(places), left)
            rows = rows[best_margin[rows] <= 0] if tell else rows
            done = numbers.stop
        return best

    def _aim(
        self,
        oracle: LogitOracle,
        images: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        towards: Tensor,
        numbers: Sequence[int],
        threat: ThreatModel,
        *,
        tell: bool,
    ) -> Tensor:
        """(KB,C,H,W): the images (B,C,H,W) moved ``towards`` (KB,) classes, K ``numbers`` of targets in one pass."""
        ids, many = sample_ids.tolist(), len(numbers)
        seeds = [derive_seed(self.seed, "apgd", "target", number) for number in numbers]
        start = torch.cat([threat.random_start(images, ids, seed, "apgd", 0) for seed in seeds])
        objective, clean = _towards(towards, labels, oracle, tell=tell), images.repeat(many, 1, 1, 1)
        single = self.replace(targets=0)
        return single.maximise(objective, clean, sample_ids.repeat(many), threat, start=start, counter=oracle.counter)

    def _climb(
        self, oracle: ImageOracle, clean: Tensor, first: Tensor, rows: Tensor, ball: Ball
    ) -> tuple[Tensor, Tensor]:
        """One restart: images (B,C,H,W) and their losses (B,)."""
        result, heights = first.clone(), lowest(first)
        walk, last = _Walk.begin(oracle, clean, first, rows, 2 * ball.eps), 0
        walk = walk.leave(oracle, result, heights)
        marks = set(checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            if not len(walk.rows):
                return result, heights
            walk.move(_advance(walk, ball, _MOMENTUM if step > 1 else 1.0), oracle, slope=step < self.steps)
            walk = walk.leave(oracle, result, heights)
            if step in marks:
                walk.check(self.rho * (step - last))
                last = step
        result[walk.places], heights[walk.places] = walk.best, walk.best_loss.double()
        return result, heights


@dataclass
class _Walk:
    """Where the samples that still stand are; each field has their number B as its first dimension.

    Attributes:
        rows, places: in the oracle, and in the result of this restart.
        now, before, slope, loss: this iterate, the last one, the gradient and the loss here.
        best, best_slope, best_loss: the same of the best iterate.
        size: of the step. rises: steps that raised the loss since the last checkpoint.
        seen, halved: the best loss at the last checkpoint, and whether the step was halved there.
    """

    rows: Tensor
    places: Tensor
    clean: Tensor
    now: Tensor
    before: Tensor
    slope: Tensor
    loss: Tensor
    best: Tensor
    best_slope: Tensor
    best_loss: Tensor
    size: Tensor
    rises: Tensor
    seen: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, oracle: ImageOracle, clean: Tensor, first: Tensor, rows: Tensor, size: float) -> "_Walk":
        """All at their start, whose loss and gradient are asked for."""
        loss, slope = oracle.gradient(first, rows)
        least = torch.where(loss.isnan(), -torch.inf, loss)  # a NaN must not stay the best
        return cls(
            rows=rows,
            places=torch.arange(len(rows), device=rows.device),
            clean=clean,
            now=first,
            before=first,
            slope=slope,
            loss=loss,
            best=first,
            best_slope=slope,
            best_loss=least,
            size=clean.new_full((len(rows),), size),
            rises=torch.zeros_like(rows),
            seen=least,
            halved=torch.zeros_like(rows, dtype=torch.bool),
        )

    def move(self, now: Tensor, oracle: ImageOracle, *, slope: bool) -> None:
        """On to ``now``; without ``slope`` nobody will step from there, and a forward pass does."""
        self.now, self.before, previous = now, self.now, self.loss
        if slope:
            self.loss, self.slope = oracle.gradient(now, self.rows)
        else:
            self.loss = oracle.loss(now, self.rows)
        self.rises = self.rises + (self.loss > previous)
        higher = self.loss > self.best_loss
        wide = higher.view(-1, 1, 1, 1)
        self.best, self.best_slope = torch.where(wide, now, self.best), torch.where(wide, self.slope, self.best_slope)
        self.best_loss = torch.where(higher, self.loss, self.best_loss)

    def check(self, wanted: float) -> None:
        """Halve the step and return to the best iterate where too few steps rose, or none did with this step size.

        The paper's condition 1 says fewer than ``wanted``; its authors' program, which the published numbers come
        from, takes the same number as too few as well, and so does this.
        """
        stuck = ~self.halved & (self.best_loss <= self.seen)
        self.halved = (self.rises <= wanted) | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        wide = self.halved.view(-1, 1, 1, 1)
        self.now, self.slope = torch.where(wide, self.best, self.now), torch.where(wide, self.best_slope, self.slope)
        self.seen, self.rises = self.best_loss, torch.zeros_like(self.rises)

    def leave(self, oracle: ImageOracle, result: Tensor, heights: Tensor) -> "_Walk":
        """Without the samples that are fooled by now; their images and losses are written into the result."""
        fooled = oracle.done(self.rows)
        if not bool(fooled.any()):
            return self
        result[self.places[fooled]], heights[self.places[fooled]] = self.now[fooled], self.loss[fooled].double()
        return _Walk(**{name: values[~fooled] for name, values in vars(self).items()})


def _advance(walk: "_Walk", ball: Ball, share: float) -> Tensor:
    """The next iterate: a projected step, blended with the last move (algorithm 1, lines 7 and 8)."""
    way = ball.step(walk.slope, 1.0) * walk.size.view(-1, 1, 1, 1)
    stepped = ball.project(walk.now + way, walk.clean)
    if share == 1.0:
        return stepped
    blended = walk.now + (stepped - walk.now) * share + (walk.now - walk.before) * (1 - share)
    return ball.project(blended, walk.clean)


def checkpoints(steps: int) -> list[int]:
    """Steps at which step sizes are looked at: ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 -
    0.03, 0.06).
    """
    marks, place, gap = [], 22, 22  # in hundredths: 0.22 + 0.19 is above 0.41 in floating point
    while place <= 100:
        marks.append(-(-place * steps // 100))
        gap = max(gap - 3, 6)
        place += gap
    return marks


def _wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,Y-1), by falling logit."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels[:, None]].view(len(logits), -1)


def _towards(targets: Tensor, labels: Tensor, oracle: LogitOracle, *, tell: bool) -> ImageObjective:
    """The targeted DLR of each row."""

    def objective(images: Tensor, rows: Tensor) -> Evaluated:
        logits, own = oracle.model(images), labels[rows]
        value = dlr_targeted(logits, own, targets[rows])
        return (value, logits.detach().argmax(1) != own) if tell else value

    return objective
