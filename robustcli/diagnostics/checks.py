"""Checks of the attack behind a robust number, each for one way in which the number can be too high.

Most are from the checklist of Carlini et al. 2019 ("On evaluating adversarial robustness") and the signs of Athalye et
al. 2018 ("Obfuscated gradients give a false sense of security", section 3.1). Counts pass a binomial test, see
`exceeds_chance`. A check gives a judgement, or the reason why it was not run.

Shapes: N queries in all, K passes or gradients.
"""

from itertools import pairwise

from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.class_losses import log_odds_of
from robustcli.diagnostics.changes import at_eps, has_setting, setting, with_search, with_settings
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import Judgement, exceeds_chance
from robustcli.diagnostics.tracing import LossTrace, TracedAttack

_USELESS = 0.05  # largest share of zero or vanishing gradients
_BROKEN = 0.01  # largest share with a NaN
# A rise of the loss below the resolution of float32 at 1 (6e-8), where the label's own probability has rounded to 1
# and its part of the gradient to 0; the gradient that is left is mostly rounding.
_VANISHING = 1e-8
_LUCK = 0.03  # share of the queries that one of two searches of equal strength may win by luck
_SURVIVING = 0.05  # share of survivors in a ball that holds every image which a sound attack may leave
_LATE = 0.05  # largest share of the rise in the last tenth of the passes; at constant speed it is 0.1
_LEAST_STEPS = 5  # fewer have no last tenth to speak of
_ACROSS = 20  # least steps of an attack that has to cross the whole box


def gradients(context: CheckContext) -> Judgement | str:
    """Gradient masking: shares of zero, NaN and vanishing gradients. Without gradient any model looks robust."""
    if (reason := context.no_search()) is not None:
        return reason
    outcome = context.outcome
    if not outcome.gradients:
        return "the attack asks for no gradients"
    zero, nan = outcome.zero / outcome.gradients, outcome.nan / outcome.gradients
    flat = _vanishing_share(context, outcome.gradient_norms)
    measured = f"of {outcome.gradients} gradients {zero:.1%} zero, {nan:.1%} with a NaN, {flat:.1%} vanishing"
    if nan > _BROKEN:
        return Judgement(True, measured, context.advice.nan)
    if max(zero, flat) <= _USELESS:
        return Judgement(False, measured)
    advice = context.advice
    return Judgement(True, measured, advice.saturated if _margin_has_gradient(context) else advice.shattered)


def randomised(context: CheckContext) -> Judgement | str:
    """Randomised model under an attack that does not average over draws (EOT)."""
    if not context.subject.randomised:
        return Judgement(False, "two passes over the same images agree")
    if context.draws > 1:
        return Judgement(
            False, f"answers are drawn; the attack averages {context.draws} draws, and most of 20 fresh count"
        )
    return Judgement(True, "two passes over the same images differ", context.advice.randomised)


def monotone_in_eps(context: CheckContext) -> Judgement | str:
    """Monotonicity in eps: a larger ball holds the smaller one, so success within the smaller one must persist."""
    if (reason := context.no_radius()) is not None:
        return reason
    if context.minimum_norm:
        return "a minimum-norm attack: the curve is one run, cut off at eps"
    assert context.image_attack is not None
    factors = (1.0, 2.0) if context.ensemble else (0.5, 1.0, 2.0)
    radii = [min(context.eps * factor, context.eps_of_box) for factor in factors]
    context.afford((len(radii) - 1) * context.passes_on(context.attackable))
    successes = [
        context.success if eps == context.eps else context.successes(*at_eps(context.image_attack, context.threat, eps))
        for eps in radii
    ]
    lost = [int((before & ~after).sum()) for before, after in pairwise(successes)]
    shown = ", ".join(f"{factor:g}" for factor in factors)
    measured = f"{_rates(successes)} at {shown} eps; {sum(lost)} stand up again"
    suspect = any(exceeds_chance(count, len(successes[0]), _LUCK) for count in lost)
    return Judgement(suspect, measured, context.advice.not_monotone)


def more_steps(context: CheckContext) -> Judgement | str:
    """Convergence: survivors that twice the steps from the same start fool."""
    if (reason := context.no_radius()) is not None:
        return reason
    assert context.image_attack is not None and context.search is not None
    if context.ensemble:
        return "an ensemble: judge its members one by one"
    if not has_setting(context.search, "steps"):
        return f"{type(context.search).__name__} takes no steps"
    steps: int = setting(context.search, "steps")
    rows = context.affordable_survivors(2 * context.most_passes)
    longer = with_settings(context.image_attack, steps=2 * steps)
    more, count, measured = context.compared(rows, [longer], f"with {2 * steps} steps in place of {steps}")
    return Judgement(exceeds_chance(more, count, _LUCK), measured, context.advice.more_steps(2 * steps))


def last_step(context: CheckContext) -> Judgement | str:
    """Convergence of the loss: share of its rise in the last tenth of the passes, over the survivors.

    A loss that still rises is a sign of too few steps also where twice as many fool no further query yet.
    """
    if (reason := context.no_radius()) is not None:
        return reason
    search, trace = context.search, LossTrace()
    assert context.image_attack is not None
    if context.subject.randomised:
        return "the loss is drawn, so that its highest value rises with every pass"
    if not isinstance(search, ImageAttack) or context.ensemble or setting(search, "targets"):
        return f"{type(context.full_attack).__name__} does not climb one loss from step to step"
    steps: int = setting(search, "steps", setting(search, "queries", 1))
    if steps < _LEAST_STEPS:
        return f"the attack takes fewer than {_LEAST_STEPS} steps"
    once = search.replace(restarts=1) if has_setting(search, "restarts") else search
    left, count = int(context.survivors.sum()), int(context.attackable.sum())
    if not exceeds_chance(left, count, _LUCK):
        return Judgement(False, f"{left} of {count} are left, too few to change the number")
    context.afford(context.passes_on(context.survivors))
    traced = with_search(context.image_attack, lambda _: TracedAttack(once, trace))
    context.subject.attacked(traced, context.images_of(context.survivors))
    losses = trace.best_so_far()
    if search.loss == "cross_entropy":
        # At a constant speed of the logits log-odds rise linearly, cross-entropy of a confident sample e-fold.
        losses = log_odds_of(losses)
    late = max(1, round((len(losses) - 1) / 10))
    total, end = losses[-1] - losses[0], losses[-1] - losses[-1 - late]
    if not bool((total > 0).any()):
        return "the loss never rose: see gradients"
    share = float((end / total)[total > 0].median())
    measured = f"{share:.1%} of the climb in the last {late} of {len(losses) - 1} passes, in the median of what stands"
    return Judgement(share > _LATE, measured, context.advice.still_rising(2 * steps))


def unbounded_eps(context: CheckContext) -> Judgement | str:
    """Unbounded eps: a ball that holds every image must leave accuracy at chance. Success in smaller balls counts."""
    if (reason := context.no_search()) is not None:
        return reason
    assert context.image_attack is not None and context.search is not None
    reason = context.no_eps()
    if reason is not None and not context.minimum_norm:
        return reason
    count = int(context.subject.foolable().sum())
    if not count:
        return "other entries of the gallery that are true of the queries cannot be edited"
    left = int(_survivors_without_bound(context).sum())
    measured = f"{left} of {count} stand in a ball that holds every image"
    return Judgement(exceeds_chance(left, count, _SURVIVING + context.subject.chance), measured, context.advice.masked)


def _survivors_without_bound(context: CheckContext) -> Tensor:
    """(N,) bool: foolable queries that survive at the radius and in balls up to one that holds every image."""
    assert context.image_attack is not None
    left = context.subject.foolable() & context.survivors
    if context.minimum_norm:
        runs = [(context.image_attack, context.threat.at(None))]
    else:
        steps = max(_ACROSS, setting(context.search, "steps", 0))
        # Half the radius starts elsewhere: near the middle of the box, where the gradient is another one.
        radii = (context.eps_of_box, context.eps_of_box / 2)
        wide = (at_eps(context.image_attack, context.threat, eps) for eps in radii)
        runs = [(with_settings(attack, steps=steps), threat) for attack, threat in wide]
    for attack, threat in runs:
        if bool(left.any()):
            left = left & ~context.subject.attacked(attack, context.images_of(left), threat=threat).success
    return left


def _vanishing_share(context: CheckContext, gradient_norms: Tensor) -> float:
    """Share of the gradients whose first-order rise of the loss within the ball is negligible, NaN ones left out."""
    radius = context.threat.radius or 1.0
    finite = gradient_norms[gradient_norms.isfinite()]
    return float((finite * radius < _VANISHING).double().mean()) if len(finite) else 0.0


def _margin_has_gradient(context: CheckContext) -> bool:
    """True if one step on the margin loss has gradients, so that the saturated loss alone is to blame."""
    if context.image_attack is None or context.search is None or not has_setting(context.search, "loss"):
        return False
    outcome = context.subject.attacked(with_settings(context.image_attack, loss="margin", steps=1, restarts=1))
    zero = outcome.zero / max(outcome.gradients, 1)  # without a graph there is no norm to see
    return max(zero, _vanishing_share(context, outcome.gradient_norms)) <= _USELESS


def _rates(successes: list[Tensor]) -> str:
    return " → ".join(f"{100 * success.double().mean():.0f} %" for success in successes) + " fall"
