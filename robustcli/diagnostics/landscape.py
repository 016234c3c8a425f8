"""Checks of the function that is attacked: the slope of its loss, its memory of other queries, and other images.

Masked gradients show there also where no attack at hand breaks the model.

Shapes: N queries in all, B images, K directions, C channels, H height, W width.
"""

import torch
from torch import Tensor

from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import gradient_of
from robustcli.attacks.core.randomness import sample_noise
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import Judgement, exceeds_chance
from robustcli.diagnostics.subjects import Objective
from robustcli.utils.seeding import derive_seed

_LUCK = 0.03  # share of the queries in which survivors are too few to change the number
_FEW = 16  # survivors that are looked at, of which one costs a hundred passes of differences
_DIRECTIONS = 4  # random ones beside that of the gradient
_SPANS = (0.125, 0.25, 0.5)  # half widths of the differences, as shares of eps
# Least agreement of gradient and differences at the best of the spans. Honest small networks have 0.95 or more, sound
# straight-through gradients 0.74, rippled, pulsed and winner-takes-all networks 0.6 at most.
_AGREEMENT = 0.65
_MOVES = 8  # passes that choose the move of an image, and judge it
_FALLING = 0.5  # largest share of the survivors that may fall once they are moved


def finite_differences(context: CheckContext) -> Judgement | str:
    """Gradient against finite differences of the margin, clean, with noise and where the attack ended.

    The gradient has to be the slope of the loss over steps of at least one size that an attack takes.
    """
    if (reason := context.no_radius()) is not None:
        return reason
    if context.subject.randomised:
        return "the loss is drawn, so that its differences are as well"
    left, count = int(context.survivors.sum()), int(context.attackable.sum())
    if not exceeds_chance(left, count, _LUCK):
        return Judgement(False, f"{left} of {count} are left, too few to change the number")
    rows = _few(context.images_of(context.survivors))
    images, x_adv = context.subject.images[rows], context.outcome.images[rows]
    seed, ids = derive_seed("diagnostics", "differences"), rows.tolist()
    points = {
        "clean": images,
        "noise": context.threat.ball.random_start(images, ids, seed),
        "attacked": x_adv.to(images.device),
    }
    with frozen(context.subject.model):
        objective = context.subject.objective(rows)
        agreements = {
            name: max(float(_agreement(context, objective, at, ids, span).median()) for span in _SPANS)
            for name, at in points.items()
        }
    shown = ", ".join(f"{value:.2f} {name}" for name, value in agreements.items())
    measured = f"agreement of gradient and differences {shown} (1: equal, 0: nothing in common)"
    return Judgement(min(agreements.values()) < _AGREEMENT, measured, context.advice.misleading)


def isolation(context: CheckContext) -> Judgement | str:
    """Answers for an image that depend on the other images of the batch, or on what was asked before."""
    if (reason := context.no_search()) is not None:
        return reason
    subject = context.subject
    if subject.randomised:
        return "the answers are drawn"
    context.run()
    with frozen(subject.model), torch.no_grad():
        together = subject.answers(subject.probe)
        alone = torch.cat([subject.answers(image[None]) for image in subject.probe])
    by_batch, by_history = (_differ(together, other) for other in (alone, subject.first_answers))
    count = len(together)
    measured = (
        f"of {count} images {by_batch} are answered otherwise alone than in a batch, "
        f"{by_history} otherwise after the attack than before"
    )
    return Judgement(by_batch + by_history > 0, measured, context.advice.entangled)


def moved_images(context: CheckContext) -> Judgement | str:
    """Survivors after a harmless move (shift, contrast, mean with another of their class): robust to it as well, unless
    the model knows the very images.
    """
    if (reason := context.no_radius()) is not None:
        return reason
    left, count = int(context.survivors.sum()), int(context.attackable.sum())
    if not exceeds_chance(left, count, _LUCK):
        return Judgement(False, f"{left} of {count} are left, too few to change the number")
    rows = _few(context.images_of(context.survivors))
    context.afford(len(rows) * (context.most_passes + _MOVES))
    moved = context.subject.moved(rows)
    if moved is None:
        return "images of a pair cannot be moved without its captions"
    correct = moved.attackable("image")
    if not bool(correct.any()):
        return "no image is right once it is moved"
    assert context.image_attack is not None
    fallen = int(moved.attacked(context.image_attack).success[correct].sum())
    context.subject.passes += moved.passes
    measured = f"{fallen} of {int(correct.sum())} that are left fall once they are moved a little"
    return Judgement(exceeds_chance(fallen, int(correct.sum()), _FALLING), measured, context.advice.remembered)


def _few(rows: Tensor) -> Tensor:
    """`_FEW` of the rows, spread evenly."""
    return rows[torch.linspace(0, len(rows) - 1, min(_FEW, len(rows))).long()]


def _agreement(context: CheckContext, objective: Objective, points: Tensor, ids: list[int], span: float) -> Tensor:
    """(B,) in [-1,1]: ``2 f.g / (f.f + g.g)`` of the differences f of the loss and those g that the gradient predicts,
    over random directions and that of the gradient; 1 where they are equal, 0 where one of them is zero.
    """
    ball, seed = context.threat.ball, derive_seed("diagnostics", "directions")
    leaf = points.detach().requires_grad_(True)
    with torch.enable_grad():
        gradient = gradient_of(objective(leaf).sum(), leaf)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    shape = points.shape[1:]
    drawn = [sample_noise(shape, ids, seed, number, normal=True).to(points) for number in range(_DIRECTIONS)]
    measured, predicted = [], []
    for direction in (*drawn, gradient):
        step = ball.step(direction, span * ball.eps)
        ahead, behind = (points + step).clamp(0, 1), (points - step).clamp(0, 1)
        with torch.no_grad():
            measured.append((objective(ahead) - objective(behind)).double())
        predicted.append((gradient.double() * (ahead - behind).double()).flatten(1).sum(1))
    f, g = torch.stack(measured), torch.stack(predicted)
    total = (f.square() + g.square()).sum(0)
    return torch.where(total > 0, 2 * (f * g).sum(0) / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0).cpu()


def _differ(answers: Tensor, others: Tensor) -> int:
    """Rows that differ by more than rounding."""
    return int((~torch.isclose(answers, others, rtol=1e-3, atol=1e-4, equal_nan=True)).any(1).sum())
