"""Diagnostics: sound attacks pass every check, and each planted fault trips the check that is meant for it.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import (
    APGD,
    BPDA,
    EOT,
    FAB,
    FGSM,
    PGD,
    CharacterEdits,
    ClassifierAttack,
    Gallery,
    ImageAttack,
    ImageOracle,
    Preprocessed,
    PreprocessedEncoder,
    RetrievalAttack,
    RetrievalEOT,
    SepAttack,
    SequentialAttack,
    Surrogate,
    ThreatModel,
    WordSubstitution,
)
from robustcli.attacks.core.oracle import TextEncoder, TextObjective
from robustcli.attacks.image.square import Square
from robustcli.diagnostics import (
    CHECKS,
    NOT_RUN,
    OK,
    SUSPECT,
    ClassifierSubject,
    Finding,
    RetrievalSubject,
    diagnose,
    refuse_suspects,
    verdict,
)
from robustcli.diagnostics.finding import exceeds_chance
from robustcli.utils.errors import SuspectClaim
from robustcli.utils.relevance import Relevance
from robustcli.utils.seeding import generator
from tests.attacks.conftest import SYNONYMS, SmallNet, SynonymTable, ToyDual, make_pairs, words

# Not of every model: of captions, of what has another network inside, of classifiers, of what does not draw.
SOME_MODELS = {"words", "coverage", "transfer", "straight through", "moved images"}
UNDRAWN = {"isolation", "finite differences", "smoothed gradients"}
IMAGE_CHECKS = set(CHECKS) - SOME_MODELS - UNDRAWN
OF_CLASSES = IMAGE_CHECKS | UNDRAWN | {"straight through", "moved images"}


def quantise(images: Tensor) -> Tensor:
    return (images * 15).round() / 15


class Scaled(nn.Module):
    """Logits times a factor: the same classes, and a softmax that is always sure."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


class Deaf(nn.Module):
    """Images never change the class, but the loss has a healthy gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.model(images)) + torch.tensor([3.0, 0.0, 0.0, 0.0])


class Noisy(nn.Module):
    """Draws from torch's global generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images + 0.02 * torch.randn_like(images)).clamp(0, 1))


def noisy(images: Tensor) -> Tensor:
    return (images + 0.02 * torch.randn_like(images)).clamp(0, 1)


def against(images: Tensor) -> Tensor:
    """Stands in backward for a step that does nothing: gradients point down the loss."""
    return 1 - images


class Overshooting(PGD):
    """Its step fits the configured eps and smaller ones; above it the step is lost, as a wrong unit would do."""

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        found = super().ascend(oracle, images, sample_ids, threat, start)
        return images if 0.1 < threat.ball.eps < 0.5 else found


class Forgetful(WordSubstitution):
    """With more than one word it gives up."""

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        found, queries, gradients = super().edit(encoder, objective, captions, caption_ids, threat)
        return (captions if threat.words > 1 else found), queries, gradients


def classifier(threat: ThreatModel, change: Callable[[nn.Module], nn.Module] = lambda net: net) -> ClassifierSubject:
    net, images = change(SmallNet()).eval(), torch.rand(32, 3, 8, 8, generator=generator(12))
    return ClassifierSubject(net, images, _labels(net, images), threat)


def _labels(net: nn.Module, images: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels: Tensor = net(images).argmax(1)
    return labels


def dual(
    threat: ThreatModel,
    change: Callable[[ToyDual], object] = lambda model: model,
    captions: Sequence[int] = (1,) * 16,
    contrast: float = 0.03,
) -> RetrievalSubject:
    model = ToyDual().eval()
    pairs = make_pairs(model, captions, contrast=contrast)
    return RetrievalSubject(change(model), pairs, threat)  # type: ignore[arg-type]


def sure(model: ToyDual) -> ToyDual:
    model.scale.data.fill_(12.0)  # e^12 = 160,000
    return model


def images_alone(image: ImageAttack) -> RetrievalAttack:
    return SepAttack(image=image)


def nan_backward(images: Tensor) -> Tensor:
    return images + 0 * (images - images).sqrt()


def misled(threat: ThreatModel) -> ClassifierSubject:
    return classifier(threat, lambda net: Preprocessed(net, BPDA(lambda images: images, against)))


PGD_2, PGD_4 = PGD(eps="2/255", steps=20), PGD(eps="4/255", steps=20)
APGD_4 = APGD(eps="4/255", steps=20, loss="margin")
Make = Callable[[ThreatModel], ClassifierSubject | RetrievalSubject]
SOUND: dict[str, tuple[Make, ClassifierAttack | RetrievalAttack]] = {
    "linf": (classifier, PGD_2),
    "l2": (classifier, PGD(norm="l2", eps=0.1, steps=20)),
    "apgd": (classifier, APGD(eps="2/255", steps=20)),
    "quantised under bpda": (
        partial(classifier, change=lambda net: Preprocessed(net, BPDA(quantise))),
        PGD(eps="16/255", steps=20),
    ),
    "large logits": (partial(classifier, change=lambda net: Scaled(net, 1e4)), PGD(eps="4/255", steps=10)),
    "saturated under margin": (partial(classifier, change=lambda net: Scaled(net, 1e4)), PGD_2.replace(loss="margin")),
    "randomised under eot": (partial(classifier, change=Noisy), EOT(PGD_2.replace(steps=10), draws=8)),
    "pairs": (dual, images_alone(APGD_4)),
    "both sides": (dual, SequentialAttack(image=APGD_4, text=words())),
    "large logits of pairs": (partial(dual, change=sure), images_alone(PGD_4)),
    "saturated pairs under margin": (partial(dual, change=sure), images_alone(PGD_4.replace(loss="margin"))),
    "randomised pairs under eot": (
        partial(dual, change=lambda model: PreprocessedEncoder(model, noisy)),
        RetrievalEOT(images_alone(APGD_4), draws=8),
    ),
}
# Whoever is blinded, or ends too soon, is weak as well: what sees no gradient or takes more steps does better, and
# unbounded eps may leave something.
WEAK = {"gradients", "more steps", "stronger search"}
WEAKER = {
    "black box",
    "unbounded eps",
    "stronger search",
    "more restarts",
    "smoothed gradients",
    "straight through",
    "finite differences",
}
FAULTS: dict[str, tuple[Make, ClassifierAttack | RetrievalAttack, set[str], str]] = {
    "quantised": (
        partial(classifier, change=lambda net: Preprocessed(net, quantise)),
        PGD(eps="16/255", steps=10, random_start=False),
        {"gradients", "black box"},
        "BPDA",
    ),
    "quantised pairs": (
        partial(dual, change=lambda model: PreprocessedEncoder(model, quantise), contrast=0.05),
        images_alone(PGD(eps="16/255", random_start=False)),
        {"gradients", "black box"},
        "BPDA",
    ),
    "saturated inside": (
        partial(classifier, change=lambda net: nn.Sequential(Scaled(net, 1e4), nn.Softmax(1))),
        PGD(eps="4/255", steps=10),
        {"gradients"},
        "BPDA",
    ),
    "drift from its own minimum": (
        dual,
        images_alone(PGD_4.replace(loss="drift", random_start=False)),
        {"gradients"},
        "loss=margin",
    ),
    "nan": (partial(classifier, change=lambda net: Preprocessed(net, nan_backward)), PGD_2, {"gradients"}, "NaN"),
    "deaf": (partial(classifier, change=Deaf), PGD_2, {"unbounded eps"}, "masked"),
    "randomised": (partial(classifier, change=Noisy), PGD_2, {"randomised"}, "evaluation.eot=20"),
    "randomised pairs": (
        partial(dual, change=lambda model: PreprocessedEncoder(model, noisy)),
        images_alone(PGD_4),
        {"randomised"},
        "evaluation.eot=20",
    ),
    "too small a step": (classifier, PGD(eps="1/255", steps=10, alpha="0.02/255"), {"last step"}, "attack.steps=20"),
    "too few steps": (
        classifier,
        PGD(eps="5/255", steps=4, alpha="0.7/255", random_start=False),
        {"more steps"},
        "steps=8",
    ),
    "broken step": (classifier, Overshooting(eps=0.09, steps=10), {"monotone in eps"}, "attack=apgd"),
    "broken step on pairs": (dual, images_alone(Overshooting(eps=0.09)), {"monotone in eps"}, "attack=apgd"),
    "one step": (dual, images_alone(FGSM(eps="4/255")), {"stronger search"}, "apgd"),
    "broken words": (
        partial(dual, captions=(2,) * 16),
        SepAttack(text=Forgetful(candidates=SynonymTable(SYNONYMS))),
        {"words"},
        "search",
    ),
}


def suspects(findings: Sequence[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.status == SUSPECT}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_attack_passes_every_check(name: str) -> None:
    make, attack = SOUND[name]
    findings = diagnose(make(attack.threat), attack, queries=50)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.check: finding.measured for finding in findings if finding.status == SUSPECT} == {}
    assert verdict(findings) == OK
    ran = {finding.check for finding in findings if finding.status == OK}
    assert ran >= IMAGE_CHECKS - {"last step"}
    assert ("words" in ran) == ("coverage" in ran) == (name == "both sides")
    assert (UNDRAWN & ran) == (set() if "randomised" in name else UNDRAWN)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_trips_its_check_and_no_other(name: str) -> None:
    make, attack, expected, advice = FAULTS[name]
    findings = diagnose(make(attack.threat), attack, queries=50)
    assert expected <= suspects(findings) <= expected | (WEAKER if expected & WEAK else set())
    assert verdict(findings) == SUSPECT
    assert any(advice in finding.advice for finding in findings)
    assert all(bool(finding.advice) == (finding.status == SUSPECT) for finding in findings)


def test_gradients_that_mislead_are_found_by_who_does_not_see_them() -> None:
    subject, plain = misled(PGD_4.threat), SmallNet().eval()
    found = {finding.check: finding for finding in diagnose(subject, PGD(), sources={"plain": plain})}
    assert found["gradients"].status == OK
    assert found["black box"].status == found["transfer"].status == SUSPECT
    assert "images computed on plain" in found["transfer"].measured
    alone = diagnose(subject, PGD(), sources={"itself": subject.model})
    assert next(each for each in alone if each.check == "transfer").status == NOT_RUN


def test_a_sound_attack_is_not_beaten_by_transfer() -> None:
    other = SmallNet()
    other.layers[0].weight.data.mul_(0.9)
    assert "transfer" not in suspects(
        diagnose(classifier(PGD_2.threat), PGD_2, sources={"other": other.eval()}, queries=5)
    )


@pytest.mark.parametrize(
    ("attack", "ran"),
    [
        (FGSM(eps="2/255"), OF_CLASSES - {"more steps", "last step"}),
        (
            FAB(eps="2/255", steps=5),
            OF_CLASSES - {"monotone in eps", "last step"},
        ),
        (FAB(steps=5), {"gradients", "isolation", "randomised", "unbounded eps"}),
        (PGD(eps=0), {"randomised"}),
        (Square(eps="2/255", queries=20), OF_CLASSES - {"gradients", "more steps"}),
        (Surrogate(PGD_2, SmallNet().eval()), {"randomised"}),
    ],
)
def test_what_cannot_be_checked_says_why(attack: ClassifierAttack, ran: set[str]) -> None:
    findings = diagnose(classifier(attack.threat), attack, queries=5)
    assert {finding.check for finding in findings if finding.status != NOT_RUN} == ran
    assert all(finding.measured for finding in findings)
    assert verdict(findings) in ((NOT_RUN,) if "unbounded eps" not in ran else (OK, SUSPECT))


def test_a_model_that_is_never_right_has_nothing_to_be_robust() -> None:
    net, images = SmallNet().eval(), torch.rand(8, 3, 8, 8, generator=generator(12))
    findings = diagnose(ClassifierSubject(net, images, (net(images).argmax(1) + 1) % 4, PGD_2.threat), PGD_2)
    assert verdict(findings) == NOT_RUN
    assert "right when clean" in findings[0].measured


def test_only_what_the_attacker_may_edit_counts() -> None:
    model = ToyDual().eval()
    pairs = make_pairs(model, (1,) * 8)
    gallery, query, both = (
        Gallery.of(model, pairs),
        *(ThreatModel(eps="4/255", words=1, edits=edits) for edits in ("query", "both")),
    )
    right = RetrievalSubject(model, pairs, both).attackable("image")
    subject = RetrievalSubject(model, pairs, query)
    assert right.all()
    assert subject.attackable("image").tolist() == [True] * 8 + [False] * 8
    assert subject.attackable("text").tolist() == [False] * 8 + [True] * 8
    many = replace(gallery, caption_matches=Relevance.of_matrix(torch.ones(8, 8, dtype=torch.bool)))
    assert RetrievalSubject(model, pairs, both, gallery=many).foolable().tolist() == [True] * 8 + [False] * 8


def test_nothing_of_the_model_changes_and_the_same_is_found_again() -> None:
    subject = classifier(PGD_2.threat, Noisy)
    subject.model.train()
    state = torch.get_rng_state()
    first = diagnose(subject, PGD_2, queries=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert subject.model.training
    assert all(weight.requires_grad and weight.grad is None for weight in subject.model.parameters())
    assert diagnose(subject, PGD_2, queries=5) == first


def test_a_count_is_held_against_luck() -> None:
    assert not exceeds_chance(0, 64, 0.002)
    assert not exceeds_chance(1, 64, 0.002)
    assert exceeds_chance(2, 64, 0.002)
    assert exceeds_chance(1, 20, 0.0)
    assert not exceeds_chance(-3, 64, 0.05)


def test_strict_names_what_is_suspect_and_what_to_do() -> None:
    sound = Finding(check="gradients", status=OK, measured="none zero")
    bad = Finding(check="black box", status=SUSPECT, measured="9 of 64", advice="Use BPDA.", model="mat", attack="pgd")
    refuse_suspects([sound])
    with pytest.raises(SuspectClaim, match=r"mat, pgd: black box: 9 of 64\. Use BPDA\."):
        refuse_suspects([sound, bad])


def test_a_check_that_fails_is_not_run_and_ends_nothing() -> None:
    subject = classifier(PGD_2.threat)
    subject.objective = lambda rows: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    findings = {finding.check: finding for finding in diagnose(subject, PGD_2, queries=5)}
    assert findings["finite differences"].status == NOT_RUN
    assert findings["finite differences"].measured == "it failed: ZeroDivisionError: division by zero"
    assert findings["unbounded eps"].status == OK


@pytest.mark.parametrize("table", [{}, {"automobile": ["car"]}, {"the": ["a"]}])
def test_words_without_candidates_are_suspect(table: dict[str, list[str]]) -> None:
    attack = SepAttack(text=WordSubstitution(candidates=SynonymTable(table)))
    found = {finding.check: finding for finding in diagnose(dual(attack.threat), attack)}
    assert found["coverage"].status == SUSPECT
    assert "candidates for 0.0% of the words; 0 of 16 captions can be edited" in found["coverage"].measured


def test_coverage_counts_words_and_captions() -> None:
    search = WordSubstitution(candidates=SynonymTable({"red": ["ruby"], "dog": ["hound", "DOG"], "the": ["a"]}))
    covered = search.coverage(["the red dog", "a Red, red cat", "the cat"])
    assert covered is not None
    assert (covered.units, covered.editable_units) == (9, 4)
    assert (covered.captions, covered.editable_captions) == (3, 2)
    typos = CharacterEdits(search="typos").coverage(["ab 1", "12"])
    assert typos is not None and (typos.units, typos.editable_units, typos.editable_captions) == (6, 2, 1)
