"""What a diagnostic says, and what all of them together say of a robust number."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from robustcli.utils.errors import SuspectClaim

Status = Literal["ok", "suspect", "not run"]
OK: Status = "ok"
SUSPECT: Status = "suspect"
NOT_RUN: Status = "not run"
_CORE = ("unbounded eps", "words")  # of images, and of captions; where neither ran, nothing was tested
_LEVEL = 0.05  # a count is beyond chance where one as high has a smaller probability


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One diagnostic of one attack on one model.

    Attributes:
        check: its name.
        status: ``ok``, ``suspect`` or ``not run``.
        measured: what was seen, or why nothing was looked at.
        advice: what to do; empty unless ``suspect``.
        model, attack: whose number it stands under, by their labels in the table.
    """

    check: str
    status: Status
    measured: str
    advice: str = ""
    model: str = "model"
    attack: str = "attack"


@dataclass(frozen=True)
class Judgement:
    """What a check made of its measurement; ``advice`` is read where it is ``suspect``."""

    suspect: bool
    measured: str
    advice: str = ""


def verdict(findings: Iterable[Finding]) -> Status:
    """Of the findings under one number: ``suspect`` if any is; ``ok`` if none is and the budget was tested at all."""
    found = {finding.check: finding.status for finding in findings}
    if SUSPECT in found.values():
        return SUSPECT
    return OK if any(found.get(check) == OK for check in _CORE) else NOT_RUN


def verdicts(findings: Iterable[Finding]) -> dict[tuple[str, str], Status]:
    """(model, attack) -> `verdict`, in the order in which they come."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.model, finding.attack), []).append(finding)
    return {key: verdict(group) for key, group in groups.items()}


def refuse_suspects(findings: Iterable[Finding]) -> None:
    """What ``diagnostics=strict`` does after all is written.

    Raises:
        SuspectClaim: a number is suspect; names each with what was measured and what to do.
    """
    suspects = [finding for finding in findings if finding.status == SUSPECT]
    if suspects:
        lines = [f"{each.model}, {each.attack}: {each.check}: {each.measured}. {each.advice}" for each in suspects]
        raise SuspectClaim("\n  ".join(["diagnostics=strict, and these numbers are not to be believed:", *lines]))


def beyond(count: int, total: int, share: float) -> bool:
    """One-sided binomial test at 5 %: ``count`` of ``total`` is more than ``share`` in [0,1] and luck explain."""
    from scipy.stats import binomtest

    return count > 0 and bool(binomtest(count, total, min(share, 1.0), alternative="greater").pvalue < _LEVEL)
