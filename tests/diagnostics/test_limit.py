"""The limit of the diagnostics in passes of the model, and findings that are kept over a kill."""

from collections.abc import Callable

import pytest
import torch

from robustcli.attacks import EOT, FGSM, PGD, ClassifierAttack, SepAttack, WordSubstitution
from robustcli.diagnostics import CHECKS, NOT_RUN, OK, Finding, diagnose, verdict
from robustcli.diagnostics.context import CheckContext
from tests.attacks.conftest import SYNONYMS, SynonymTable
from tests.diagnostics.test_diagnostics import Noisy, classifier, dual

ATTACKS_NO_MORE = {"gradients", "finite differences", "isolation", "randomised", "coverage"}
NEEDED = {"unbounded eps", "words"}
PLAIN = PGD(eps="2/255", steps=20)
DRAWN = EOT(PGD(eps="2/255", steps=10), draws=8)


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def left_out(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.left_out}


def test_a_check_that_does_not_fit_is_left_out_and_tells_what_it_takes() -> None:
    whole, limited = (diagnose(classifier(PLAIN.threat), PLAIN, limit=limit) for limit in (None, 0))
    assert left_out(whole) == set() and {"smoothed gradients", "black box"} <= left_out(limited)
    assert not left_out(limited) & (ATTACKS_NO_MORE | NEEDED)
    found = by_check(limited)["black box"]
    assert found.status == NOT_RUN and found.advice == "diagnostics.share=null runs it."
    assert (
        "it takes about" in found.measured and "of 13,120 are left" in found.measured
    )  # 330 for each of 32 images, and 2,560
    assert verdict(limited) == verdict(whole) == OK
    same = {name for name in CHECKS if name not in left_out(limited)}
    assert [each for each in whole if each.check in same] == [each for each in limited if each.check in same]


def test_the_limit_holds_and_a_larger_one_runs_more() -> None:
    counts = []
    for limit in (13_120, 17_000, 26_000, 10**6):
        subject = classifier(PLAIN.threat)
        findings = diagnose(subject, PLAIN, limit=limit)
        # A search judges its start as well, a pass more an image than is estimated.
        assert subject.passes <= 1.05 * limit
        counts.append(len(left_out(findings)))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[1] > counts[-1] == 0


@pytest.mark.parametrize(("attack", "change"), [(PLAIN, lambda net: net), (DRAWN, Noisy)], ids=["plain", "drawn"])
def test_no_check_takes_more_than_is_estimated(
    attack: ClassifierAttack, change: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates: dict[str, float] = {}
    monkeypatch.setattr(CheckContext, "afford", lambda _, passes: estimates.update({running[-1]: passes}))
    running: list[str] = []
    findings = diagnose(classifier(attack.threat, change), attack, show=running.append)  # type: ignore[arg-type]
    assert running == list(CHECKS)
    ran = {each.check: each.passes for each in findings if each.status != NOT_RUN}
    assert set(ran) & set(estimates) >= {"stronger search", "more steps", "monotone in eps", "black box"}
    over = {check: (ran[check], estimates[check]) for check in estimates if ran.get(check, 0) > 1.05 * estimates[check]}
    assert not over


@pytest.mark.parametrize("made", ["plain", "drawn", "words"])
@pytest.mark.parametrize("killed_in", ["finite differences", "unbounded eps", "more restarts"])
@pytest.mark.parametrize("limit", [None, 9000])
def test_findings_of_a_killed_run_are_those_of_an_undisturbed_one(
    made: str, killed_in: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(part: Callable[[str, Callable[[], Finding]], Finding] | None = None) -> list[Finding]:
        if made == "words":
            text = SepAttack(image=PGD(steps=5), text=WordSubstitution(candidates=SynonymTable(SYNONYMS)))
            return diagnose(dual(text.threat), text, queries=20, limit=limit, part=part)
        attack, change = (PLAIN, lambda net: net) if made == "plain" else (DRAWN, Noisy)
        return diagnose(classifier(attack.threat, change), attack, queries=20, limit=limit, part=part)  # type: ignore[arg-type]

    kept: dict[str, Finding] = {}

    def part(check: str, compute: Callable[[], Finding]) -> Finding:
        if check not in kept:
            kept[check] = compute()
        return kept[check]

    def stop(_: CheckContext) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(CHECKS, killed_in, stop)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            whole(part)
    assert list(kept) == list(CHECKS)[: list(CHECKS).index(killed_in)]
    assert whole(part) == whole()


def test_a_check_draws_by_its_name_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("coverage", "last step"):
        monkeypatch.setitem(CHECKS, check, lambda _: str(torch.rand(1)))  # type: ignore[arg-type]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(by_check(diagnose(classifier(PLAIN.threat, Noisy), PLAIN, queries=20)))
    assert found[0] == found[1]
    assert found[0]["coverage"].measured != found[0]["last step"].measured


def test_a_weak_attack_meets_a_stronger_search_however_few_passes_it_takes() -> None:
    attack = FGSM(eps="0.1/255")
    found = by_check(diagnose(classifier(attack.threat), attack, limit=0))
    assert (
        "of the 32 that are left of 32" in found["stronger search"].measured and not found["stronger search"].left_out
    )
