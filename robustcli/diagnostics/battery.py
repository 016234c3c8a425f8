"""Battery of all checks of one attack on one model."""

from collections.abc import Callable, Mapping
from typing import Any

from robustcli.diagnostics.advice import ConfigKeys
from robustcli.diagnostics.changes import AnyAttack
from robustcli.diagnostics.checks import gradients, last_step, monotone_in_eps, more_steps, randomised, unbounded_eps
from robustcli.diagnostics.comparisons import black_box, more_words, stronger_search, transfer
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import NOT_RUN, OK, SUSPECT, Finding, Judgement
from robustcli.diagnostics.subjects import Subject

CHECKS: Mapping[str, Callable[[CheckContext], Judgement | str]] = {
    "gradients": gradients,
    "randomised": randomised,
    "monotone in eps": monotone_in_eps,
    "unbounded eps": unbounded_eps,
    "more steps": more_steps,
    "last step": last_step,
    "stronger search": stronger_search,
    "black box": black_box,
    "transfer": transfer,
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
    queries: int = 100,
    keys: ConfigKeys | None = None,
) -> list[Finding]:
    """Findings of all ``CHECKS``, in their order; the cost is that of a dozen runs of the attack on the sample.

    Args:
        subject: the model on a small sample, about ``SAMPLES`` images.
        attack: the one behind the number.
        model, name: labels of the number.
        sources: other models by name, for transfer attacks; the subject's own is left out.
        queries: forward passes of the black-box search, an image.
        keys: config keys of the attack, for the advice; None: those of a node ``attack``.
    """
    context = CheckContext(subject, attack, sources=sources or {}, queries=queries, keys=keys or ConfigKeys())
    return [_finding(label, check(context), model, name) for label, check in CHECKS.items()]


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
