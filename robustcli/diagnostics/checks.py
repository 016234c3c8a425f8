"""The checks: each looks at one way in which a robust number can be too good to be true.

Most are from the checklist of Carlini et al. 2019 ("On evaluating adversarial robustness") and the signs of Athalye et
al. 2018 ("Obfuscated gradients give a false sense of security", section 3.1). A count is held against luck, see
`beyond`. A check that cannot be made gives the reason.

Shapes: Q queries, K passes.
"""

from itertools import pairwise

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.diagnostics.changes import resized, setting, takes, with_search, with_settings
from robustcli.diagnostics.evidence import Evidence
from robustcli.diagnostics.finding import Judgement, beyond
from robustcli.diagnostics.watching import Climb, Traced

_USELESS = 0.05  # share of the gradients that may be zero or vanish
_BROKEN = 0.01  # share that may hold a NaN
# A rise of the loss below the resolution of float32 at 1 (6e-8), where the label's own probability has rounded to 1
# and its part of the gradient to 0; the gradient that is left is mostly rounding.
_VANISHING = 1e-8
_LUCK = 0.03  # share of the queries that one of two searches of equal strength may win by luck
_STANDING = 0.05  # share that may stand in a ball that holds every image: a sound attack may fail on them
_LATE = 0.05  # of the climb in the last tenth of the passes; at constant speed it is 0.1
_LEAST_STEPS = 5  # of which a tenth can be told
_ACROSS = 20  # steps that an attack has to cross the whole box


def gradients(case: Evidence) -> Judgement | str:
    """Zero, NaN and vanishing gradients: a loss that cannot be climbed looks like a model that cannot be fooled."""
    if (reason := case.no_search()) is not None:
        return reason
    found = case.outcome
    if not found.gradients:
        return "the attack asks for no gradients"
    zero, nan, flat = found.zero / found.gradients, found.nan / found.gradients, _flat(case, found.slopes)
    measured = f"of {found.gradients} gradients {zero:.1%} zero, {nan:.1%} with a NaN, {flat:.1%} vanishing"
    if nan > _BROKEN:
        return Judgement(True, measured, case.advice.nan)
    if max(zero, flat) <= _USELESS:
        return Judgement(False, measured)
    return Judgement(True, measured, case.advice.saturated if _margin_has_slope(case) else case.advice.shattered)


def randomised(case: Evidence) -> Judgement | str:
    """A model that draws, under an attack that sees one draw at a time."""
    if not case.subject.randomised:
        return Judgement(False, "two passes over the same images agree")
    if case.draws > 1:
        return Judgement(
            False, f"answers are drawn; the attack averages {case.draws} draws, and most of 20 fresh count"
        )
    return Judgement(True, "two passes over the same images differ", case.advice.randomised)


def monotone_in_eps(case: Evidence) -> Judgement | str:
    """A larger ball holds the smaller one, so what falls within the small one must not stand in the large one."""
    if (reason := case.no_radius()) is not None:
        return reason
    if case.minimum_norm:
        return "a minimum-norm attack: the curve is one run, cut off at eps"
    assert case.attack is not None
    factors = (1.0, 2.0) if case.ensemble else (0.5, 1.0, 2.0)
    radii = [min(case.eps * factor, case.whole) for factor in factors]
    found = [
        case.success if eps == case.eps else case.successes(*resized(case.attack, case.threat, eps)) for eps in radii
    ]
    lost = [int((before & ~after).sum()) for before, after in pairwise(found)]
    measured = f"{_rates(found)} at {', '.join(f'{factor:g}' for factor in factors)} eps; {sum(lost)} stand up again"
    return Judgement(any(beyond(count, len(found[0]), _LUCK) for count in lost), measured, case.advice.not_monotone)


def more_steps(case: Evidence) -> Judgement | str:
    """Twice the steps from the same start: what they add was missing from the number."""
    if (reason := case.no_radius()) is not None:
        return reason
    assert case.attack is not None and case.search is not None
    if case.ensemble:
        return "an ensemble: judge its members one by one"
    if not takes(case.search, "steps"):
        return f"{type(case.search).__name__} takes no steps"
    steps: int = setting(case.search, "steps")
    more, left, count = case.more(with_settings(case.attack, steps=2 * steps))
    measured = f"{more} of the {left} that are left of {count} fall with {2 * steps} steps in place of {steps}"
    return Judgement(beyond(more, count, _LUCK), measured, case.advice.more_steps(2 * steps))


def last_step(case: Evidence) -> Judgement | str:
    """Whether the loss of the images that stand still climbs when the attack ends; more steps may show nothing yet."""
    if (reason := case.no_radius()) is not None:
        return reason
    search, climb = case.search, Climb()
    assert case.attack is not None
    if case.subject.randomised:
        return "the loss is drawn, so that its highest value rises with every pass"
    if not isinstance(search, ImageAttack) or case.ensemble or setting(search, "targets"):
        return f"{type(case.given).__name__} does not climb one loss from step to step"
    steps: int = setting(search, "steps", setting(search, "queries", 1))
    if steps < _LEAST_STEPS:
        return f"the attack takes fewer than {_LEAST_STEPS} steps"
    once = search.replace(restarts=1) if takes(search, "restarts") else search
    rows, left, count = case.images_of(case.standing), int(case.standing.sum()), int(case.reached.sum())
    if not beyond(left, count, _LUCK):
        return Judgement(False, f"{left} of {count} are left, too few to change the number")
    case.subject.attacked(with_search(case.attack, lambda _: Traced(once, climb)), rows)
    heights = _in_logits(climb.best()) if search.loss == "cross_entropy" else climb.best()
    late = max(1, round((len(heights) - 1) / 10))
    total, end = heights[-1] - heights[0], heights[-1] - heights[-1 - late]
    if not bool((total > 0).any()):
        return "the loss never rose: see gradients"
    share = float((end / total)[total > 0].median())
    measured = f"{share:.1%} of the climb in the last {late} of {len(heights) - 1} passes, in the median of what stands"
    return Judgement(share > _LATE, measured, case.advice.still_rising(2 * steps))


def unbounded_eps(case: Evidence) -> Judgement | str:
    """An eps that allows any image must leave nothing, or chance; a ball also holds what fell in the smaller ones."""
    if (reason := case.no_search()) is not None:
        return reason
    assert case.attack is not None and case.search is not None
    reason = case.no_eps()
    if reason is not None and not case.minimum_norm:
        return reason
    count = int(case.subject.breakable().sum())
    if not count:
        return "other entries of the gallery that are true of the queries cannot be edited"
    left = int(_unbroken(case).sum())
    measured = f"{left} of {count} stand in a ball that holds every image"
    return Judgement(beyond(left, count, _STANDING + case.subject.chance), measured, case.advice.masked)


def _unbroken(case: Evidence) -> Tensor:
    """(N,) bool: the queries that some image must mislead, and that none does."""
    assert case.attack is not None
    left = case.subject.breakable() & case.standing
    if case.minimum_norm:
        runs = [(case.attack, case.threat.at(None))]
    else:
        steps = max(_ACROSS, setting(case.search, "steps", 0))
        radii = (case.whole, case.whole / 2)  # from a start near the middle of the box, where the slope is another one
        wide = (resized(case.attack, case.threat, eps) for eps in radii)
        runs = [(with_settings(attack, steps=steps), threat) for attack, threat in wide]
    for attack, threat in runs:
        if bool(left.any()):
            left = left & ~case.subject.attacked(attack, case.images_of(left), threat=threat).success
    return left


def _in_logits(losses: Tensor) -> Tensor:
    """Cross-entropies as log-odds of the error: of a sure sample they grow e-fold at a constant speed of the logits."""
    known = losses.clamp(min=1e-12)
    return known + torch.log1p(-torch.exp(-known))


def _flat(case: Evidence, slopes: Tensor) -> float:
    """Share of the gradients that promise no rise within the ball; NaN ones are counted elsewhere."""
    radius = case.threat.radius or 1.0
    known = slopes[slopes.isfinite()]
    return float((known * radius < _VANISHING).double().mean()) if len(known) else 0.0


def _margin_has_slope(case: Evidence) -> bool:
    """Whether the loss alone is to blame: one step up the margin finds gradients."""
    if case.attack is None or case.search is None or not takes(case.search, "loss"):
        return False
    found = case.subject.attacked(with_settings(case.attack, loss="margin", steps=1, restarts=1))
    return _flat(case, found.slopes) <= _USELESS


def _rates(successes: list[Tensor]) -> str:
    return " → ".join(f"{100 * success.double().mean():.0f} %" for success in successes) + " fall"
