"""The limit of the diagnostics in passes of the model, and findings that are kept over a kill."""

from collections.abc import Callable

import pytest
import torch

from robustcli.attacks import EOT, FGSM, PGD, ClassifierAttack, SepAttack, WordSubstitution
from robustcli.diagnostics import CHECKS, NOT_RUN, OK, ClassifierSubject, ConfigKeys, Finding, diagnose, verdict
from robustcli.diagnostics.context import CheckContext, LeftOut
from robustcli.diagnostics.finding import SEARCHES
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


def shrunk(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if "closest of the" in finding.measured}


def test_a_check_that_does_not_fit_is_left_out_and_tells_what_it_takes() -> None:
    whole, limited = (diagnose(classifier(PLAIN.threat), PLAIN, limit=limit) for limit in (None, 0))
    assert left_out(whole) == shrunk(whole) == set() and "monotone in eps" in left_out(limited)
    assert not left_out(limited) & (ATTACKS_NO_MORE | NEEDED)
    found = by_check(limited)["monotone in eps"]
    assert found.status == NOT_RUN and found.advice == "diagnostics.share=null runs it."
    assert "it takes about" in found.measured and " are left" in found.measured
    assert verdict(limited) == verdict(whole) == OK
    same = {name for name in CHECKS if name not in left_out(limited) | shrunk(limited)}
    assert [each for each in whole if each.check in same] == [each for each in limited if each.check in same]


@pytest.mark.parametrize("images", [16, 32])
def test_all_that_can_contradict_a_number_is_run_however_few_passes_there_are(images: int) -> None:
    subject = classifier(PLAIN.threat)
    few = ClassifierSubject(subject.model, subject.images[:images], subject.labels[:images], subject.threat)
    findings = diagnose(few, PLAIN, limit=0)
    found, other = by_check(findings), set(SEARCHES) - {"transfer"}
    assert {name: found[name].measured for name in other if found[name].status == NOT_RUN} == {}
    assert {"black box", "smoothed gradients"} <= shrunk(findings) <= {*SEARCHES, "more steps"}
    assert "fall to Square (1000 queries) or noise" in found["black box"].measured
    least = 330 * images + 8 * (600 + 1000) + 2560  # beside what the attack takes on each image
    assert sum(each.passes for each in findings) <= 1.02 * least


def test_the_survivors_that_the_attack_came_closest_to_fooling_are_searched() -> None:
    context = CheckContext(classifier(PLAIN.threat), PLAIN, sources={}, queries=None, keys=ConfigKeys(), limit=0)
    rows, before = context.images_of(context.survivors), context.passes
    with torch.no_grad():
        margins = context.subject.objective(rows)(context.outcome.images[rows])
    context.subject.passes -= len(rows)
    chosen = context.affordable_survivors(1000)
    left = ~torch.isin(rows, chosen)
    assert 8 <= len(chosen) < len(rows) and margins[~left].min() >= margins[left].max()
    assert context.passes == before, "how close they are is no check's own"
    assert torch.equal(context.affordable_survivors(1), rows)
    assert context.affordable_queries(100, 4) == 1000
    context.spent = int(context.left) - 8 * 400
    assert context.affordable_queries(100, 4) == 196 and len(context.affordable_survivors(200)) == 8
    context.spent += 8 * 300
    assert context.affordable_queries(100, 4) == 100
    with pytest.raises(LeftOut, match="it takes about 832 passes of the model, and 800 are left"):
        context.affordable_survivors(104)


def test_the_limit_holds_and_a_larger_one_runs_more() -> None:
    counts = []
    for limit in (25_920 + 32 * 42, 40_000, 80_000, 10**6):
        subject = classifier(PLAIN.threat)
        findings = diagnose(subject, PLAIN, limit=limit)
        # A search judges its start as well, a pass more an image than is estimated.
        assert subject.passes <= 1.05 * limit
        counts.append(len(left_out(findings) | shrunk(findings)))
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
