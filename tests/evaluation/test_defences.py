"""Test-time defences on real digits, with noise in place of a generator: who knows what, fresh draws, resume."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.attacks import PGD, Attack, ClassifierAttack, DeepFool, SepAttack, ThreatModel
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.data import Digits, Scenes
from robustcli.defenses import JPEG, NormNoise, PurifiedClassifier, PurifiedEncoder, Step
from robustcli.evaluation import (
    BARE,
    Attacker,
    AttackRun,
    ClassificationEvaluator,
    Evaluation,
    Group,
    RetrievalEvaluator,
)
from robustcli.evaluation.evaluator import Attacked
from robustcli.models import Classifier, DualEncoder, load

IMAGES, FRESH, EOT = 12, 6, 2
THREAT = ThreatModel(norm="l2", eps=1.0)
ALL = ("static", "bpda", "adaptive")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    found = load("digits", checkpoint="shipped")
    assert isinstance(found, Classifier)
    return found


def evaluation_of(*, batch_size: int = IMAGES, access: tuple[str, ...] = ALL, **attacks: Attack) -> Evaluation:
    evaluator = ClassificationEvaluator(
        Digits(split="test"), THREAT, batch_size=batch_size, limit=IMAGES, fresh=FRESH, radii=(0.5, 1.0)
    )
    return Evaluation(
        evaluator=evaluator,
        attacks=attacks or {"deepfool": DeepFool(steps=10), "pgd": PGD(steps=10, early_stop=False)},
        threat=THREAT,
        radii=(0.5, 1.0),
        attacker=Attacker(access=access, eot=EOT),
    )


def group_of(evaluation: Evaluation, classifier: Classifier, **defences: Step) -> Group:
    steps = defences or {"noise": Step(NormNoise(1.0)), "jpeg": Step(JPEG(quality=50))}
    entry = evaluation.evaluator.entry
    made = {name: PurifiedClassifier(classifier, step, draws=4) for name, step in steps.items()}
    return Group(bare=entry(BARE, classifier), defended=tuple(entry(name, each, name) for name, each in made.items()))


@pytest.fixture(scope="module")
def records(classifier: Classifier) -> pd.DataFrame:
    evaluation = evaluation_of()
    return evaluation.records([group_of(evaluation, classifier)])


def test_there_is_a_record_for_each_image_defence_attack_and_access(records: pd.DataFrame) -> None:
    counts = records.groupby(["model", "attack", "access"], sort=False).size()
    assert counts[BARE, "clean", "clean"] == counts["noise", "clean", "clean"] == IMAGES
    assert counts["jpeg", "deepfool", "adaptive"] == counts[BARE, "deepfool", "static"] == IMAGES
    assert counts["jpeg", "pgd", "bpda"] == 2 * IMAGES
    assert (BARE, "pgd", "adaptive") not in counts


@pytest.mark.parametrize(("model", "access"), [("noise", "adaptive"), ("noise", "static"), ("jpeg", "static")])
def test_smallest_changes_are_followed_to_the_bound(records: pd.DataFrame, model: str, access: str) -> None:
    found = records[(records["model"] == model) & (records["attack"] == "deepfool") & (records["access"] == access)]
    found = found.astype({"followed": bool})
    smallest, wider = found[~found["followed"]], found[found["followed"] & (found["eps"] == 1.0)]
    assert len(smallest) == IMAGES and set(wider["image_id"]) <= set(smallest[smallest["norm"] < 1]["image_id"])
    assert wider["norm"].between(0.5, 1 + 1e-5).all() and (wider["norm"] > 0.8).mean() > 0.5
    assert wider["mean"].mean() <= smallest[smallest["image_id"].isin(wider["image_id"])]["mean"].mean()


def test_what_the_attack_found_on_the_very_model_is_not_followed(records: pd.DataFrame) -> None:
    followed = records[records["followed"].fillna(False).astype(bool)]
    assert BARE not in set(followed["model"])
    assert set(followed[followed["access"] != "static"]["model"]) == {"noise"}


def test_a_bounded_attack_stays_within_its_bound(records: pd.DataFrame) -> None:
    pgd = records[records["attack"] == "pgd"]
    assert (pgd["norm"] <= pgd["eps"] + 1e-5).all()
    assert (pgd["norm"] > 0.5 * pgd["eps"]).all()


def test_the_static_images_are_those_of_the_bare_classifier(records: pd.DataFrame) -> None:
    static = records[(records["attack"] == "deepfool") & (records["access"] == "static")]
    static = static[~static["followed"].astype(bool)]
    norms = static.pivot(index="image_id", columns="model", values="norm").dropna()
    assert len(norms) > 6 and norms.nunique(axis=1).eq(1).all()
    assert static[static["model"] == BARE]["mean"].mean() < 0.3
    assert static[static["model"] == "noise"]["mean"].mean() > 0.6


def test_fresh_answers_are_counted_three_ways(records: pd.DataFrame) -> None:
    assert ((records["worst"].astype(float) <= records["mean"]) & (records["mean"] <= 1)).all()
    assert records[records["mean"] > 0.5]["majority"].mean() > 0.9
    drawn = records[(records["model"] == "noise") & (records["access"] == "adaptive")]
    assert drawn["mean"].mul(6).sub(drawn["mean"].mul(6).round()).abs().max() < 1e-9
    assert set(records[records["model"] == BARE]["mean"]) <= {0.0, 1.0}


def test_an_attack_that_knows_the_defence_hurts_more(records: pd.DataFrame) -> None:
    at_one = records[(records["attack"] == "pgd") & (records["eps"] == 1.0)]
    left = at_one.groupby(["model", "access"])["mean"].mean()
    assert left["noise", "adaptive"] <= left["noise", "static"] + 0.1
    assert left["jpeg", "adaptive"] <= left["jpeg", "static"] + 0.1


@dataclass(frozen=True, kw_only=True)
class Probe(ClassifierAttack):
    """Keeps the gradient of the first logit that it can see, and gives the images back."""

    seen: list[Tensor] = field(default_factory=list)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        pixels = images.clone().requires_grad_(True)
        with torch.enable_grad():
            self.seen.append(torch.autograd.grad(oracle.model(pixels)[:, 0].sum(), pixels)[0])
        return images


def dimmed(images: Tensor) -> Tensor:
    return 0.9 * images


def runs_of(classifier: Classifier, probe: Probe, **defences: Step) -> tuple[ClassificationEvaluator, list[AttackRun]]:
    evaluation = evaluation_of(probe=probe)
    runs = evaluation.runs(group_of(evaluation, classifier, **defences))
    assert isinstance(evaluation.evaluator, ClassificationEvaluator)
    return evaluation.evaluator, [run for run in runs if run.threat.radius == 1.0]


def test_who_knows_what_sees_which_gradient(classifier: Classifier) -> None:
    probe, rows, seen = Probe(), torch.arange(4), {}
    evaluator, runs = runs_of(classifier, probe, dim=Step(dimmed))
    images, labels = evaluator.batch(classifier, rows)

    def slope(images: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_(True)
        return torch.autograd.grad(classifier(pixels)[:, 0].sum(), pixels)[0]

    for run in runs:
        evaluator.perturbed(run, images, labels, rows)
        seen[run.access] = probe.seen.pop()
    for shown in (images, 0.9 * images):
        assert torch.equal(classifier(shown).argmax(1), labels), "what is wrong is not attacked"
    assert torch.allclose(seen["static"], slope(images), atol=1e-6)
    assert torch.allclose(seen["bpda"], slope(0.9 * images), atol=1e-6)
    assert torch.allclose(seen["adaptive"], 0.9 * slope(0.9 * images), atol=1e-6)
    assert not torch.allclose(seen["static"], seen["bpda"], atol=1e-3)


@pytest.mark.parametrize("access", ["bpda", "adaptive"])
def test_a_gradient_is_averaged_over_the_draws_of_all_answers(classifier: Classifier, access: str) -> None:
    asked: list[int] = []

    class Counted(NormNoise):
        def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
            asked.append(len(images))
            return super().forward(images, noise)

    class Counting(Probe):
        def search(
            self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
        ) -> Tensor:
            asked.clear()
            return super().search(oracle, images, labels, sample_ids, threat)

    counting, rows = Counting(), torch.arange(3)
    evaluator, runs = runs_of(classifier, counting, noise=Step(Counted(1.0)))
    (run,) = (run for run in runs if run.access == access)
    evaluator.perturbed(run, *evaluator.batch(classifier, rows), rows)
    assert sum(asked[:-1]) == 3 * 4 * EOT  # the last pass is the verdict of the attack itself
    assert counting.seen[0].abs().sum() > 0


def test_a_picture_shows_the_images_that_were_judged_and_attacks_again_only_where_it_must(
    classifier: Classifier,
) -> None:
    probe = Probe()
    evaluator, runs = runs_of(classifier, probe, noise=Step(NormNoise(1.0)))
    (run,) = (run for run in runs if run.access == "adaptive")
    rows, kept = evaluator.spread(5), list[Attacked]()
    for chunk in evaluator.chunks():
        evaluator.attack_chunk(run, chunk, lambda _, attacked: kept.append(attacked))
    probe.seen.clear()
    judged = torch.cat([attacked.images for attacked in kept])
    assert torch.equal(evaluator.adversarial(run, rows), judged[rows]) and not probe.seen
    assert len(evaluator.adversarial(run, torch.tensor([1]))) == 1 and len(probe.seen) == 1


def test_attacks_and_defences_whose_names_read_alike_keep_parts_of_their_own(classifier: Classifier) -> None:
    evaluation, names = evaluation_of(access=("static", "adaptive")), list[str]()
    group = group_of(evaluation, classifier, b=Step(JPEG(quality=50)), **{"a-b": Step(JPEG(quality=50))})
    evaluation.records([group], part=lambda name, compute: (names.append(name), compute())[1])
    assert len(names) == len(set(names)) == len(evaluation.runs(group))


def test_what_is_said_of_an_image_does_not_depend_on_its_batch(classifier: Classifier) -> None:
    keys, tables = ["image_id", "model", "attack", "eps", "followed"], []
    for size in (IMAGES, 5):
        evaluation = evaluation_of(batch_size=size, access=("static",))
        found = evaluation.records([group_of(evaluation, classifier)]).astype({"followed": "boolean"})
        tables.append(found.sort_values(keys, ignore_index=True))
    assert tables[0]["mean"].between(0.01, 0.99).any(), "the draws decide nothing"
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_a_killed_evaluation_goes_on_where_it_stopped(classifier: Classifier, records: pd.DataFrame) -> None:
    store: dict[str, pd.DataFrame] = {}
    computed: list[str] = []

    class Killed(Exception):
        pass

    def part(name: str, compute: Callable[[], pd.DataFrame], most: int = 99) -> pd.DataFrame:
        if name not in store:
            if len(computed) == most:
                raise Killed
            computed.append(name)
            store[name] = compute()
        return store[name]

    evaluation = evaluation_of()
    with pytest.raises(Killed):
        evaluation.records([group_of(evaluation, classifier)], part=partial(part, most=5))
    before = list(computed)
    again = evaluation.records([group_of(evaluation, classifier)], part=part)
    assert len(before) == 5 and computed[:5] == before and len(set(computed)) == len(computed)
    pd.testing.assert_frame_equal(again, records)


def test_images_are_counted_for_the_display(classifier: Classifier) -> None:
    evaluation, seen = evaluation_of(batch_size=8, access=("static",)), list[tuple[str, int]]()
    group = group_of(evaluation, classifier)
    evaluation.records([group], show=lambda run, images: seen.append((run.title, images)))
    assert sum(images for _, images in seen) == IMAGES * len(evaluation.runs(group))


def test_a_defence_in_front_of_a_dual_encoder_is_judged_as_strictly(scenes: Scenes, small_model: DualEncoder) -> None:
    """Static, BPDA and adaptive attackers, and verdicts on fresh draws, of queries in both directions."""
    threat = ThreatModel(norm="l2", eps=1.0)
    evaluator = RetrievalEvaluator(scenes, threat, batch_size=12, limit=12, fresh=FRESH)
    attacks = {"pgd": SepAttack(image=PGD(steps=3))}
    evaluation = Evaluation(evaluator=evaluator, attacks=attacks, threat=threat, attacker=Attacker(eot=EOT))
    noise = PurifiedEncoder(small_model, Step(NormNoise(1.0)), draws=2)
    group = Group(bare=evaluator.entry("m", small_model), defended=(evaluator.entry("m+noise", noise, "noise"),))
    found = evaluation.records([group])
    counts = found.groupby(["model", "access"], sort=False)["query_id"].size()
    queries = 12 + len(evaluator.captions)
    assert counts.to_dict() == {
        ("m", "clean"): queries,
        ("m+noise", "clean"): queries,
        ("m", "static"): queries,
        ("m+noise", "static"): queries,
        ("m+noise", "bpda"): queries,
        ("m+noise", "adaptive"): queries,
    }
    drawn = found[found["model"] == "m+noise"]
    assert (drawn["draws"] == FRESH).all() and (found[found["model"] == "m"]["draws"] == 1).all()
    assert drawn["mean"].between(0.01, 0.99).any(), "the draws decide nothing"
    shares = drawn["mean"] * FRESH
    assert (shares - shares.round()).abs().max() < 1e-9
    assert ((drawn["worst"].astype(float) <= drawn["mean"]) & (drawn["mean"] <= 1)).all()


class Shorter(Step):
    """A cleaner that an attacker may shorten to one without noise."""

    def shortened(self) -> Step:
        return Step(NormNoise(0.0))


def test_a_shorter_chain_is_attacked_on_request_and_the_whole_one_judged(classifier: Classifier) -> None:
    evaluation = evaluation_of(access=("shortened",), pgd=PGD(steps=2, early_stop=False))
    group = group_of(evaluation, classifier, noise=Shorter(NormNoise(1.0)), jpeg=Step(JPEG(quality=50)))
    runs = [run for run in evaluation.attacker.runs(group, {"pgd": [(PGD(steps=2), THREAT)]}) if run.access != "static"]
    (run,) = runs
    assert run.access == "shortened" and [entry.label for entry in run.entries] == ["noise"], "JPEG has no shorter form"
    assert run.victim is not run.entries[0].model and not run.victim.randomised and run.victim.classifier is classifier
