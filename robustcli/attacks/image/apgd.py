"""Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", section 3 and algorithm 1), L-inf and L2, each sample with a step size of its own.

Shapes: N samples, B samples not fooled yet, Y classes, K targets, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.class_losses import dlr_targeted, margin
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageObjective, ImageOracle, LogitOracle, ObjectiveValue, copies_per_pass
from robustcli.attacks.core.passes import Passes, Problem, both, forward
from robustcli.attacks.core.restarts import best_of, better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.seeding import derive_seed

_MOMENTUM = 0.75  # alpha of the paper: weight of the new step


@dataclass(frozen=True, kw_only=True)
class APGD(ImageAttack):
    """Auto-PGD: PGD with momentum, which halves a sample's step size and returns to its best iterate when progress
    ends.

    Args:
        steps: gradient evaluations of a restart, and of a target; 0 leaves the start as it is.
        restarts: each from a start of its own, for the samples that are not fooled yet.
        rho: share of the steps since the last checkpoint that must raise the loss, in (0,1).
        targets: 0: raise ``loss``. Above 0, on classifiers alone: the targeted DLR towards each of that many wrong
            classes of highest clean logit in turn, for the samples that are not fooled yet; all if there are fewer.
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

    def passes(self, problem: Problem) -> Passes:
        single = (both(max(self.steps, 1)) + forward(min(self.steps, 1))) * self.restarts
        if self.targets and not problem.captions:  # each with a pass that reads its margin, after one for the ranking
            single = forward(1) + (single + forward(1)) * min(self.targets, problem.classes - 1)
        return single.bounded(self.early_stop and problem.stops_early)

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
                x_start = ball.project(start, clean)  # the rows of restart 0 are all of them
            else:
                x_start = ball.random_start(clean, ids, self.seed, "apgd", restart)
            return self._restart(oracle, clean, x_start, rows, ball)

        return best_of(oracle, images, self.restarts, search)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        if not self.targets:
            return super().search(oracle, images, labels, sample_ids, threat)
        rows, report_fooled = torch.arange(len(images), device=images.device), self.early_stop and not oracle.randomised
        ranked = _wrong_classes(oracle.logits(images, rows), labels)[:, : self.targets]
        best, best_margin, done = images.clone(), lowest(images), 0
        while len(rows) and done < ranked.shape[1]:
            clean = images[rows]
            numbers = range(done, min(done + copies_per_pass(clean), ranked.shape[1]))
            wide, counter = rows.repeat(len(numbers)), QueryCounter.of(len(numbers) * len(rows))
            labels_wide, ids = labels[wide], sample_ids[rows.to(sample_ids.device)]
            target_classes = torch.cat([ranked[rows, number] for number in numbers])
            x_adv = self._attack_targets(
                LogitOracle(oracle.model, counter),
                clean,
                labels_wide,
                ids,
                target_classes,
                numbers,
                threat,
                report_fooled=report_fooled,
            )
            margins = margin(LogitOracle(oracle.model, counter).logits(x_adv, torch.arange(len(wide))), labels_wide)
            # Several targets share a pass, but count as one after the other: the next only where those before failed.
            for positions in torch.arange(len(wide), device=rows.device).view(len(numbers), -1):
                not_fooled = best_margin[rows] <= 0 if report_fooled else torch.ones_like(rows, dtype=torch.bool)
                at, kept = positions[not_fooled], rows[not_fooled]
                best[kept], best_margin[kept] = better(x_adv[at], margins[at], best[kept], best_margin[kept])
                oracle.counter.add(counter.part(at), kept)
            rows = rows[best_margin[rows] <= 0] if report_fooled else rows
            done = numbers.stop
        return best

    def _attack_targets(
        self,
        oracle: LogitOracle,
        images: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        target_classes: Tensor,
        numbers: Sequence[int],
        threat: ThreatModel,
        *,
        report_fooled: bool,
    ) -> Tensor:
        """(KB,C,H,W): images (B,C,H,W) attacked towards ``target_classes`` (KB,), K targets ``numbers`` in one pass."""
        ids, count = sample_ids.tolist(), len(numbers)
        seeds = [derive_seed(self.seed, "apgd", "target", number) for number in numbers]
        start = torch.cat([threat.random_start(images, ids, seed, "apgd", 0) for seed in seeds])
        objective = _targeted_objective(target_classes, labels, oracle, report_fooled=report_fooled)
        single, clean = self.replace(targets=0), images.repeat(count, 1, 1, 1)
        return single.maximise(objective, clean, sample_ids.repeat(count), threat, start=start, counter=oracle.counter)

    def _restart(
        self, oracle: ImageOracle, clean: Tensor, x_start: Tensor, rows: Tensor, ball: Ball
    ) -> tuple[Tensor, Tensor]:
        """One restart: images (B,C,H,W) and their losses (B,).

        The start and each step cost a forward and a backward pass; the last step costs a forward pass alone, since no
        other step is taken from there.
        """
        result, result_loss = x_start.clone(), lowest(x_start)
        # The first step size of the paper is 2 eps: a step crosses the whole ball.
        iterates, last_check = _Iterates.start_at(oracle, clean, x_start, rows, 2 * ball.eps), 0
        iterates = iterates.drop_fooled(oracle, result, result_loss)
        check_steps = set(checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            if not len(iterates.rows):
                return result, result_loss
            x_next = _next_iterate(iterates, ball, _MOMENTUM if step > 1 else 1.0)
            iterates.update(x_next, oracle, with_gradient=step < self.steps)
            iterates = iterates.drop_fooled(oracle, result, result_loss)
            if step in check_steps:
                iterates.update_step_size(self.rho * (step - last_check))
                last_check = step
        result[iterates.positions], result_loss[iterates.positions] = iterates.x_best, iterates.loss_best.double()
        return result, result_loss


@dataclass
class _Iterates:
    """State of algorithm 1 for the samples that are not fooled yet; each field has their number B as first dimension.

    Attributes:
        rows, positions: in the oracle, and in the result of this restart.
        x_adv, x_prev: the current iterate and the one before. grad, loss: gradient and loss at ``x_adv``.
        x_best, grad_best, loss_best: the best iterate, its gradient and its loss.
        step_size: eta of the paper. improvements: steps since the last checkpoint that raised the loss.
        loss_best_last_check, reduced_last_check: best loss at the last checkpoint, and True where the step size was
            halved there.
    """

    rows: Tensor
    positions: Tensor
    clean: Tensor
    x_adv: Tensor
    x_prev: Tensor
    grad: Tensor
    loss: Tensor
    x_best: Tensor
    grad_best: Tensor
    loss_best: Tensor
    step_size: Tensor
    improvements: Tensor
    loss_best_last_check: Tensor
    reduced_last_check: Tensor

    @classmethod
    def start_at(
        cls, oracle: ImageOracle, clean: Tensor, x_start: Tensor, rows: Tensor, step_size: float
    ) -> "_Iterates":
        """All samples at their start: a forward and a backward pass."""
        loss, grad = oracle.gradient(x_start, rows)
        start_loss = torch.where(loss.isnan(), -torch.inf, loss)  # nothing is higher than a NaN
        return cls(
            rows=rows,
            positions=torch.arange(len(rows), device=rows.device),
            clean=clean,
            x_adv=x_start,
            x_prev=x_start,
            grad=grad,
            loss=loss,
            x_best=x_start,
            grad_best=grad,
            loss_best=start_loss,
            step_size=clean.new_full((len(rows),), step_size),
            improvements=torch.zeros_like(rows),
            loss_best_last_check=start_loss,
            reduced_last_check=torch.zeros_like(rows, dtype=torch.bool),
        )

    def update(self, x_adv: Tensor, oracle: ImageOracle, *, with_gradient: bool) -> None:
        """Evaluate the next iterate: a forward and, ``with_gradient``, a backward pass; the last iterate needs no
        gradient.
        """
        self.x_adv, self.x_prev, previous = x_adv, self.x_adv, self.loss
        if with_gradient:
            self.loss, self.grad = oracle.gradient(x_adv, self.rows)
        else:
            self.loss = oracle.loss(x_adv, self.rows)
        self.improvements = self.improvements + (self.loss > previous)
        higher = self.loss > self.loss_best
        mask = higher.view(-1, 1, 1, 1)
        self.x_best = torch.where(mask, x_adv, self.x_best)
        self.grad_best = torch.where(mask, self.grad, self.grad_best)
        self.loss_best = torch.where(higher, self.loss, self.loss_best)

    def update_step_size(self, wanted: float) -> None:
        """Halve the step size and return to the best iterate where condition 1 or 2 of the paper holds.

        Condition 1: fewer than ``wanted`` steps raised the loss; the authors' program, which the published numbers come
        from, counts the same number as too few as well, and so does this. Condition 2: the step size was not halved at
        the last checkpoint, and the best loss has not risen since.
        """
        stuck = ~self.reduced_last_check & (self.loss_best <= self.loss_best_last_check)
        self.reduced_last_check = (self.improvements <= wanted) | stuck
        self.step_size = torch.where(self.reduced_last_check, self.step_size / 2, self.step_size)
        mask = self.reduced_last_check.view(-1, 1, 1, 1)
        self.x_adv, self.grad = torch.where(mask, self.x_best, self.x_adv), torch.where(mask, self.grad_best, self.grad)
        self.loss_best_last_check, self.improvements = self.loss_best, torch.zeros_like(self.improvements)

    def drop_fooled(self, oracle: ImageOracle, result: Tensor, result_loss: Tensor) -> "_Iterates":
        """The state without the samples that are fooled; their images and losses are written into the result."""
        fooled = oracle.is_fooled(self.rows)
        if not bool(fooled.any()):
            return self
        positions = self.positions[fooled]
        result[positions], result_loss[positions] = self.x_adv[fooled], self.loss[fooled].double()
        return _Iterates(**{name: values[~fooled] for name, values in vars(self).items()})


def _next_iterate(iterates: "_Iterates", ball: Ball, momentum: float) -> Tensor:
    """The next iterate: a projected step, averaged with the last update (algorithm 1, lines 7 and 8)."""
    step = ball.step(iterates.grad, 1.0) * iterates.step_size.view(-1, 1, 1, 1)
    z = ball.project(iterates.x_adv + step, iterates.clean)
    if momentum == 1.0:
        return z
    x_next = iterates.x_adv + (z - iterates.x_adv) * momentum + (iterates.x_adv - iterates.x_prev) * (1 - momentum)
    return ball.project(x_next, iterates.clean)


def checkpoints(steps: int) -> list[int]:
    """Checkpoints of the step size: ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03,
    0.06).
    """
    marks, percent, period = [], 22, 22  # in hundredths: 0.22 + 0.19 is above 0.41 in floating point
    while percent <= 100:
        marks.append(-(-percent * steps // 100))
        period = max(period - 3, 6)
        percent += period
    return marks


def _wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,Y-1) long: the wrong classes by falling logit."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels[:, None]].view(len(logits), -1)


def _targeted_objective(targets: Tensor, labels: Tensor, oracle: LogitOracle, *, report_fooled: bool) -> ImageObjective:
    """Targeted DLR of each row, towards the class ``targets`` (N,)."""

    def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
        logits, labels_of_rows = oracle.model(images), labels[rows]
        value = dlr_targeted(logits, labels_of_rows, targets[rows])
        return (value, logits.detach().argmax(1) != labels_of_rows) if report_fooled else value

    return objective
