"""All checks of one attack on one model."""

from collections.abc import Callable, Mapping
from typing import Any

from robustcli.diagnostics.advice import ConfigKeys
from robustcli.diagnostics.changes import AnyAttack
from robustcli.diagnostics.checks import gradients, last_step, monotone_in_eps, more_steps, randomised, unbounded_eps
from robustcli.diagnostics.evidence import Evidence
from robustcli.diagnostics.finding import NOT_RUN, OK, SUSPECT, Finding, Judgement
from robustcli.diagnostics.rivals import black_box, more_words, stronger_search, transfer
from robustcli.diagnostics.subjects import Subject

CHECKS: Mapping[str, Callable[[Evidence], Judgement | str]] = {
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
SAMPLES = 64  # images that tell enough; each check names how many queries it saw


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
    """Every check of ``CHECKS``, in this order; a dozen runs of the attack on the sample.

    Args:
        subject: the model on a small sample, about ``SAMPLES`` images.
        attack: as it was judged.
        model, name: the labels of the number.
        sources: other models by name, whose adversarial images may transfer; the subject's own is left out.
        queries: forward passes of the black-box search, an image.
        keys: where it stands in the config, for the advice; None: as ``attack``.
    """
    case = Evidence(subject, attack, sources=sources or {}, queries=queries, keys=keys or ConfigKeys())
    return [_finding(check, judge(case), model, name) for check, judge in CHECKS.items()]


def _finding(check: str, found: Judgement | str, model: str, attack: str) -> Finding:
    if isinstance(found, str):
        return Finding(check=check, status=NOT_RUN, measured=found, model=model, attack=attack)
    status = SUSPECT if found.suspect else OK
    return Finding(
        check=check,
        status=status,
        measured=found.measured,
        advice=found.advice if found.suspect else "",
        model=model,
        attack=attack,
    )
