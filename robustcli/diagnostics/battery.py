"""Battery of all checks of one attack on one model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from robustcli.attacks.core.frozen import frozen
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
from robustcli.diagnostics.context import CheckContext, LeftOut
from robustcli.diagnostics.finding import NOT_RUN, OK, SUSPECT, Finding, Judgement
from robustcli.diagnostics.landscape import finite_differences, isolation, moved_images
from robustcli.diagnostics.subjects import Subject
from robustcli.utils.seeding import derive_seed
from robustcli.utils.stops import stop_code

Check = Callable[[CheckContext], Judgement | str]
Part = Callable[[str, Callable[[], Finding]], Finding]  # (name of the check, compute) -> finding, cached by name

# In the order in which they are run: those that attack no more, those without which there is no verdict, those that can
# contradict the number for what they cost, and last those that look for signs.
CHECKS: Mapping[str, Check] = {
    "gradients": gradients,
    "finite differences": finite_differences,
    "isolation": isolation,
    "randomised": randomised,
    "coverage": coverage,
    "unbounded eps": unbounded_eps,
    "words": more_words,
    "stronger search": stronger_search,
    "black box": black_box,
    "more restarts": more_restarts,
    "moved images": moved_images,
    "transfer": transfer,
    "smoothed gradients": smoothed_gradients,
    "straight through": straight_through,
    "last step": last_step,
    "more steps": more_steps,
    "monotone in eps": monotone_in_eps,
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
    limit: int | None = None,
    part: Part | None = None,
    show: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Findings of all ``CHECKS``, in their order; the cost is that of a dozen or two runs of the attack on the sample.

    A check that raises is *not run*, for the reason that it gives: a number is never lost with its diagnostics. Each
    check has draws of its own, so that one by one they find the same as in a row.

    Args:
        subject: the model on a small sample, about ``SAMPLES`` images.
        attack: the one behind the number.
        model, name: labels of the number.
        sources: other models by name, for transfer attacks; the subject's own is left out.
        queries: forward passes of the black-box search, an image; None: 1000 of small images, 100 of others.
        keys: config keys of the attack, for the advice; None: those of a node ``attack``.
        limit: forward and backward passes that the attack and all checks may take together; the checks at least 330 for
            each image of the sample, 600 and the black-box queries for each of eight, and 2,560 beside. A comparison
            with another attack takes at most half of what is left, on the survivors that the attack came closest to
            fooling, eight at least; a check that would take more than is left is left out. The attack itself, what is
            measured on its result and the checks without which there is no verdict are run in any case. None: no limit.
        part: cache of the findings, by which a killed run resumes.
        show: receives the name of each check before it is run.
    """
    context = CheckContext(
        subject, attack, sources=sources or {}, queries=queries, keys=keys or ConfigKeys(), limit=limit
    )
    findings: list[Finding] = []
    for label in CHECKS:
        if show is not None:
            show(label)
        compute = partial(_checked, label, context, model, name)
        findings.append(compute() if part is None else part(label, compute))
        context.spent += findings[-1].passes
    return findings


def failed(error: Exception, *, model: str, name: str) -> list[Finding]:
    """Findings of an attack on a model that cannot be diagnosed at all: none of ``CHECKS`` was run."""
    return [replace(_not_run(label, _reason(error), model, name), failed=True) for label in CHECKS]


def _checked(label: str, context: CheckContext, model: str, attack: str) -> Finding:
    before = context.passes
    try:
        with frozen(context.subject.model):
            torch.manual_seed(derive_seed(0, "diagnostics", label))  # of a randomised model
            result = CHECKS[label](context)
    except LeftOut as error:
        found = _not_run(label, str(error), model, attack, passes=context.passes - before)
        return replace(found, advice=context.advice.left_out, left_out=True)
    except Exception as error:  # of the model, the attack or the check: whatever it is, the number stands
        if stop_code(error):
            raise
        found = _not_run(label, _reason(error), model, attack, passes=context.passes - before)
        return replace(found, failed=True)
    passes = context.passes - before
    if isinstance(result, str):
        return _not_run(label, result, model, attack, passes=passes)
    return Finding(
        check=label,
        status=SUSPECT if result.suspect else OK,
        measured=result.measured,
        advice=result.advice if result.suspect else "",
        model=model,
        attack=attack,
        passes=passes,
    )


def _not_run(check: str, reason: str, model: str, attack: str, *, passes: int = 0) -> Finding:
    return Finding(check=check, status=NOT_RUN, measured=reason, model=model, attack=attack, passes=passes)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"it failed: {type(error).__name__}" + (f": {lines[0]}" if lines else "")
