"""Findings of diagnostics, and the verdict of all of them on a robust number."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from robustcli.utils.errors import SuspectClaim

Status = Literal["ok", "suspect", "not run"]
OK: Status = "ok"
SUSPECT: Status = "suspect"
NOT_RUN: Status = "not run"
# Checks that attack anew, by another search: where one of them is missing, the number may yet be contradicted.
SEARCHES = ("stronger search", "black box", "more restarts", "transfer", "straight through", "smoothed gradients")
_CORE = ("unbounded eps", "words")  # of images, and of captions; where neither ran, the verdict is "not run"
_LEVEL = 0.05  # significance level of the binomial test


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check of one attack on one model.

    Attributes:
        check: its name.
        status: ``ok``, ``suspect`` or ``not run``.
        measured: the measurement, or the reason why the check was not run.
        advice: remedy; empty unless ``suspect`` or left out.
        model, attack: labels of the number in the table.
        passes: forward and backward passes of an image or a caption that it took, the attack itself left out.
        left_out: it was not run because it would have taken more passes than were left.
        failed: it was not run because it raised.
    """

    check: str
    status: Status
    measured: str
    advice: str = ""
    model: str = "model"
    attack: str = "attack"
    passes: int = 0
    left_out: bool = False
    failed: bool = False

    @property
    def missing(self) -> bool:
        """It applies, and was not run."""
        return self.left_out or self.failed


@dataclass(frozen=True)
class Judgement:
    """Judgement of a check on its measurement; ``advice`` is read where it is ``suspect``."""

    suspect: bool
    measured: str
    advice: str = ""


def verdict(findings: Iterable[Finding]) -> Status:
    """Status of one number from its findings: ``suspect`` if any is; ``ok`` if none is and a core check ran."""
    found = {finding.check: finding.status for finding in findings}
    if SUSPECT in found.values():
        return SUSPECT
    return OK if any(found.get(check) == OK for check in _CORE) else NOT_RUN


def by_number(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """(model, attack) -> the findings on this number, in the order in which they come."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.model, finding.attack), []).append(finding)
    return groups


def refuse_suspects(findings: Iterable[Finding]) -> None:
    """Error of ``diagnostics=strict``, after all is written.

    Raises:
        SuspectClaim: a number is suspect; names each with its measurement and its remedy.
    """
    suspects = [finding for finding in findings if finding.status == SUSPECT]
    if suspects:
        lines = [f"{each.model}, {each.attack}: {each.check}: {each.measured}. {each.advice}" for each in suspects]
        raise SuspectClaim("\n  ".join(["diagnostics=strict, and these numbers are not to be believed:", *lines]))


def exceeds_chance(count: int, total: int, share: float) -> bool:
    """One-sided binomial test at 5 %: ``count`` of ``total`` is significantly more than a ``share`` in [0,1]."""
    from scipy.special import betainc  # the tail of the binomial; scipy.stats takes half a second more to import

    return count > 0 and bool(betainc(count, total - count + 1, min(share, 1.0)) < _LEVEL)
