"""Battery of all checks of one attack on one model."""

from collections.abc import Callable, Mapping
from typing import Any

from robustcli.diagnostics.advice import ConfigKeys
from robustcli.diagnostics.changes import AnyAttack
from robustcli.diagnostics.checks import gradients, last_step, monotone_in_eps, more_steps, randomised, unbounded_eps
from robustcli.diagnostics.comparisons import (
    black_box,
    coverage,
    more_restarts,
    more_words,
    smoothed_gradients,
    straight_through,
    stronger_search,
    transfer,
)
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import NOT_RUN, OK, SUSPECT, Finding, Judgement
from robustcli.diagnostics.landscape import finite_differences, isolation, moved_images
from robustcli.diagnostics.subjects import Subject

CHECKS: Mapping[str, Callable[[CheckContext], Judgement | str]] = {
    "gradients": gradients,
    "finite differences": finite_differences,
    "isolation": isolation,
    "randomised": randomised,
    "monotone in eps": monotone_in_eps,
    "unbounded eps": unbounded_eps,
    "more steps": more_steps,
    "last step": last_step,
    "stronger search": stronger_search,
    "more restarts": more_restarts,
    "smoothed gradients": smoothed_gradients,
    "straight through": straight_through,
    "black box": black_box,
    "transfer": transfer,
    "moved images": moved_images,
    "coverage": coverage,
    "words": more_words,
}
SAMPLES = 64  # images; enough for the binomial tests, and each check names its number of queries


def diagnose(
    subject: Subject,
    attack: AnyAttack,
    *,
    model: str = "model",
    name: str = "attack",
    sources: Mapping[str, Any] | None = None,
    queries: int | None = None,
    keys: ConfigKeys | None = None,
) -> list[Finding]:
    """Findings of all ``CHECKS``, in their order; the cost is that of a dozen or two runs of the attack on the sample.

    A check that raises is *not run*, for the reason that it gives: a number is never lost with its diagnostics.

    Args:
        subject: the model on a small sample, about ``SAMPLES`` images.
        attack: the one behind the number.
        model, name: labels of the number.
        sources: other models by name, for transfer attacks; the subject's own is left out.
        queries: forward passes of the black-box search, an image; None: 1000 of small images, 100 of others.
        keys: config keys of the attack, for the advice; None: those of a node ``attack``.
    """
    context = CheckContext(subject, attack, sources=sources or {}, queries=queries, keys=keys or ConfigKeys())
    return [_finding(label, _result(check, context), model, name) for label, check in CHECKS.items()]


def failed(error: Exception, *, model: str, name: str) -> list[Finding]:
    """Findings of an attack on a model that cannot be diagnosed at all: none of ``CHECKS`` was run."""
    return [_finding(label, _reason(error), model, name) for label in CHECKS]


def _result(check: Callable[[CheckContext], Judgement | str], context: CheckContext) -> Judgement | str:
    try:
        return check(context)
    except Exception as error:  # of the model, the attack or the check: whatever it is, the number stands
        return _reason(error)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"it failed: {type(error).__name__}" + (f": {lines[0]}" if lines else "")


def _finding(check: str, result: Judgement | str, model: str, attack: str) -> Finding:
    if isinstance(result, str):
        return Finding(check=check, status=NOT_RUN, measured=result, model=model, attack=attack)
    status = SUSPECT if result.suspect else OK
    return Finding(
        check=check,
        status=status,
        measured=result.measured,
        advice=result.advice if result.suspect else "",
        model=model,
        attack=attack,
    )
