"""Judging defences on real digits, with noise in place of a generator: who knows what, fresh draws, resume."""

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.attacks import PGD, ClassifierAttack, DeepFool
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.data import Digits
from robustcli.defenses import JPEG, NormNoise, PurifiedClassifier, Step
from robustcli.evaluation.purification import BARE, Protocol, PurificationJudge
from robustcli.models import Classifier, load

IMAGES = 12


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    found = load("digits", checkpoint="shipped")
    assert isinstance(found, Classifier)
    return found


def judge_of(
    classifier: Classifier, *, batch_size: int = IMAGES, access: tuple[str, ...] = ("static", "bpda", "adaptive")
) -> PurificationJudge:
    attacks = {
        "deepfool": {None: DeepFool(norm="l2", steps=10)},
        "pgd": {bound: PGD(norm="l2", eps=bound, steps=10, early_stop=False) for bound in (0.5, 1.0)},
    }
    defences = {
        "noise": PurifiedClassifier(classifier, Step(NormNoise(1.0)), draws=4),
        "jpeg": PurifiedClassifier(classifier, Step(JPEG(quality=50))),
    }
    protocol = Protocol(attacks=attacks, bounds=(0.5, 1.0), bound=1.0, fresh=6, eot=2, access=access, seed=0)
    return PurificationJudge(Digits(split="test"), classifier, defences, protocol, batch_size=batch_size, limit=IMAGES)


@pytest.fixture(scope="module")
def records(classifier: Classifier) -> pd.DataFrame:
    return judge_of(classifier).records()


def test_there_is_a_record_for_each_image_defence_attack_and_access(records: pd.DataFrame) -> None:
    counts = records.groupby(["model", "attack", "access"], sort=False).size()
    assert counts[BARE, "clean", "clean"] == counts["noise", "clean", "clean"] == IMAGES
    assert counts["jpeg", "deepfool", "adaptive"] == counts[BARE, "deepfool", "static"] == IMAGES
    assert counts["jpeg", "pgd", "bpda"] == 2 * IMAGES
    assert (BARE, "pgd", "adaptive") not in counts


@pytest.mark.parametrize(("model", "access"), [("noise", "adaptive"), ("noise", "static"), ("jpeg", "static")])
def test_smallest_changes_are_followed_to_the_bound(records: pd.DataFrame, model: str, access: str) -> None:
    found = records[(records["model"] == model) & (records["attack"] == "deepfool") & (records["access"] == access)]
    smallest, wider = found[~found["followed"]], found[found["followed"] & (found["bound"] == 1.0)]
    assert len(smallest) == IMAGES and set(wider["image_id"]) <= set(smallest[smallest["norm"] < 1]["image_id"])
    assert wider["norm"].between(0.5, 1 + 1e-5).all() and (wider["norm"] > 0.8).mean() > 0.5
    assert wider["mean"].mean() <= smallest[smallest["image_id"].isin(wider["image_id"])]["mean"].mean()


def test_what_the_attack_found_on_the_very_model_is_not_followed(records: pd.DataFrame) -> None:
    followed = records[records["followed"]]
    assert BARE not in set(followed["model"])
    assert set(followed[followed["access"] != "static"]["model"]) == {"noise"}


def test_a_bounded_attack_stays_within_its_bound(records: pd.DataFrame) -> None:
    pgd = records[records["attack"] == "pgd"]
    assert (pgd["norm"] <= pgd["bound"] + 1e-5).all()
    assert (pgd["norm"] > 0.5 * pgd["bound"]).all()


def test_the_static_images_are_those_of_the_bare_classifier(records: pd.DataFrame) -> None:
    static = records[(records["attack"] == "deepfool") & (records["access"] == "static")]
    static = static[~static["followed"]]
    norms = static.pivot(index="image_id", columns="model", values="norm")
    assert norms.nunique(axis=1).eq(1).all()
    assert static[static["model"] == BARE]["mean"].mean() < 0.3
    assert static[static["model"] == "noise"]["mean"].mean() > 0.6


def test_fresh_answers_are_counted_three_ways(records: pd.DataFrame) -> None:
    assert ((records["worst"].astype(float) <= records["mean"]) & (records["mean"] <= 1)).all()
    assert records[records["mean"] > 0.5]["majority"].mean() > 0.9
    drawn = records[(records["model"] == "noise") & (records["access"] == "adaptive")]
    assert drawn["mean"].mul(6).sub(drawn["mean"].mul(6).round()).abs().max() < 1e-9
    assert set(records[records["model"] == BARE]["mean"]) <= {0.0, 1.0}


def test_an_attack_that_knows_the_defence_hurts_more(records: pd.DataFrame) -> None:
    at_one = records[(records["attack"] == "pgd") & (records["bound"] == 1.0)]
    left = at_one.groupby(["model", "access"])["mean"].mean()
    assert left["noise", "adaptive"] <= left["noise", "static"] + 0.1
    assert left["jpeg", "adaptive"] <= left["jpeg", "static"] + 0.1


class Probe(ClassifierAttack):
    """Keeps the gradient of the first logit that it can see, and gives the images back."""

    norm, budget, seed = "l2", None, 0

    def __init__(self) -> None:
        self.seen = torch.empty(0)

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_(True)
        with torch.enable_grad():
            (self.seen,) = torch.autograd.grad(oracle.model(pixels)[:, 0].sum(), pixels)
        return images


def dimmed(images: Tensor) -> Tensor:
    return 0.9 * images


def test_who_knows_what_sees_which_gradient(classifier: Classifier) -> None:
    judge = judge_of(classifier)
    judge.defences = {"dim": PurifiedClassifier(classifier, Step(dimmed))}
    images, _ = judge.batch(torch.arange(4))

    def slope(images: Tensor) -> Tensor:
        pixels = images.clone().requires_grad_(True)
        return torch.autograd.grad(classifier(pixels)[:, 0].sum(), pixels)[0]

    seen = {}
    for access in ("static", "bpda", "adaptive"):
        probe = Probe()
        judge.attacked("dim", probe, access, torch.arange(4))
        seen[access] = probe.seen
    for shown in (images, 0.9 * images):
        assert torch.equal(classifier(shown).argmax(1), judge.data.labels[:4]), "what is wrong is not attacked"
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

    judge = judge_of(classifier)
    judge.defences = {"noise": PurifiedClassifier(classifier, Step(Counted(1.0)), draws=4)}

    class Counting(Probe):
        def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
            asked.clear()
            return super().mislead(oracle, images, labels, sample_ids)

    counting = Counting()
    judge.attacked("noise", counting, access, torch.arange(3))
    assert sum(asked[:-1]) == 3 * 4 * judge.protocol.eot  # the last pass is the verdict of the attack itself
    assert counting.seen.abs().sum() > 0


def test_attacks_and_defences_whose_names_read_alike_keep_parts_of_their_own(classifier: Classifier) -> None:
    judge = judge_of(classifier, access=("static", "adaptive"))
    judge.defences = {"b": judge.defences["jpeg"], "a-b": judge.defences["jpeg"]}
    names: list[str] = []
    judge.records(part=lambda name, compute: (names.append(name), compute())[1])
    assert len(names) == len(set(names)) == judge.steps


def test_what_is_said_of_an_image_does_not_depend_on_its_batch(classifier: Classifier) -> None:
    keys = ["image_id", "model", "attack", "bound"]
    whole, parts = (
        judge_of(classifier, batch_size=size, access=("static",)).records().sort_values(keys, ignore_index=True)
        for size in (IMAGES, 5)
    )
    assert whole["mean"].between(0.01, 0.99).any(), "the draws decide nothing"
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-5)


def test_a_killed_judge_goes_on_where_it_stopped(classifier: Classifier, records: pd.DataFrame) -> None:
    store: dict[str, pd.DataFrame] = {}
    computed: list[str] = []

    class Killed(Exception):
        pass

    def part(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if name not in store:
            if len(computed) == 5:
                raise Killed
            computed.append(name)
            store[name] = compute()
        return store[name]

    with pytest.raises(Killed):
        judge_of(classifier).records(part=part)
    before, computed = list(computed), []

    def second(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if name not in store:
            computed.append(name)
            store[name] = compute()
        return store[name]

    again = judge_of(classifier).records(part=second)
    assert not set(before) & set(computed)
    pd.testing.assert_frame_equal(again, records)


def test_steps_are_counted_for_the_display(classifier: Classifier) -> None:
    judge, seen = judge_of(classifier, batch_size=8, access=("static",)), []
    judge.on_step = lambda name, count: seen.append((name, count))
    judge.records()
    assert len(seen) == judge.steps
    assert sum(count for name, count in seen if name == "clean") == IMAGES
