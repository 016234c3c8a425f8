"""Robust accuracy at a radius, from records that were made by hand."""

import math

import pandas as pd
import pytest

from robustcli.evaluation.aggregate import (
    claimed_norms,
    fallen_by_attack,
    fallen_by_member,
    paper_table,
    resubmitted,
    summarise,
    up_to_radius,
    with_worst,
)
from robustcli.evaluation.records import CLEAN, WORST, with_status


def record(model: str, attack: str, access: str, image: str, mean: float, **more: object) -> dict[str, object]:
    known = {"model": model, "defence": model, "attack": attack, "access": access, "image_id": image, "query_id": image}
    said = {"mean": mean, "worst": mean == 1, "majority": mean > 0.5, "draws": 4, "direction": "image_to_class"}
    ranks = {"clean_rank": 1, "adversarial_rank": None if access == CLEAN else 1 if mean > 0.5 else 2}
    return {**known, **said, **ranks, "eps": None, "norm": 0.0, "followed": False, **more}


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).astype({"clean_rank": "Int64", "adversarial_rank": "Int64", "eps": "float64"})
    return with_status(table)


def robust_table(records: pd.DataFrame, radii: tuple[float, ...]) -> pd.DataFrame:
    return pd.concat([summarise(up_to_radius(records, eps), resamples=10, seed=0) for eps in radii])


@pytest.fixture
def records() -> pd.DataFrame:
    rows = [record(model, "clean", "clean", image, 1.0) for model in ("none", "mine") for image in "ab"]
    rows += [record("none", "cw", "static", "a", 0.0, norm=0.4), record("none", "cw", "static", "b", 0.0, norm=3.0)]
    rows += [record("mine", "cw", "static", "a", 1.0, norm=0.4), record("mine", "cw", "static", "b", 1.0, norm=3.0)]
    rows += [record("mine", "cw", "adaptive", "a", 0.5, norm=0.6)]
    rows += [record("mine", "cw", "adaptive", "b", 0.25, norm=2.5)]
    for model, access in (("none", "static"), ("mine", "static"), ("mine", "adaptive"), ("mine", "bpda")):
        left = {"static": 0.75, "adaptive": 0.25, "bpda": 0.5}[access]
        rows += [record(model, "pgd", access, image, left, norm=bound, eps=bound) for image in "ab" for bound in (1, 2)]
    return frame(rows)


def accuracy(table: pd.DataFrame, model: str, access: str, attack: str, bound: float, verdict: str = "mean") -> float:
    found = table
    for key, value in {"model": model, "access": access, "attack": attack, "eps": bound}.items():
        found = found[found[key] == value]
    (row,) = found["recall_at_1" if verdict == "mean" else verdict]
    return float(row)


def test_a_change_beyond_the_radius_counts_as_no_attack(records: pd.DataFrame) -> None:
    table = robust_table(records, (1, 2))
    assert accuracy(table, "none", "static", "cw", 1) == 0.5  # a falls at 0.4, b at 3
    assert accuracy(table, "mine", "adaptive", "cw", 1) == 0.75  # a is right half of the time
    assert accuracy(table, "mine", "adaptive", "cw", 2, "worst") == 0.5


def test_to_the_bare_classifier_static_and_adaptive_is_one(records: pd.DataFrame) -> None:
    table = robust_table(records, (1,))
    assert accuracy(table, "none", "adaptive", "cw", 1) == accuracy(table, "none", "static", "cw", 1)


def test_the_worst_is_that_of_each_image_and_of_all_access(records: pd.DataFrame) -> None:
    table = robust_table(records, (1,))
    assert accuracy(table, "none", WORST, WORST, 1) == (0.0 + 0.75) / 2  # a falls to cw, b stands as under pgd
    assert accuracy(table, "mine", "static", WORST, 1) == 0.75
    assert accuracy(table, "mine", WORST, WORST, 1) == 0.25
    within = up_to_radius(records, 1)
    members = within[(within["model"] == "mine") & (within["attack"] != WORST)].groupby("image_id")["mean"].min()
    worst = within[(within["model"] == "mine") & (within["access"] == WORST)].set_index("image_id")["mean"]
    assert (worst == members).all()


def test_of_equal_draws_the_worst_rank_stands_with_its_costs() -> None:
    """It decides recall at 5 and 10 as well."""
    ranks = {"a": (2, 7, 3), "b": (4, 1, 2)}
    rows = [
        record("m", attack, "static", image, float(rank == 1), adversarial_rank=rank, norm=rank / 100)
        for image, of_attacks in ranks.items()
        for attack, rank in zip(("pgd", "apgd", "square"), of_attacks, strict=True)
    ]
    worst = with_worst(frame(rows))
    worst = worst[worst["attack"] == WORST].set_index("image_id")
    assert worst["adversarial_rank"].to_dict() == {"a": 7, "b": 4}
    assert worst["norm"].to_dict() == {"a": 0.07, "b": 0.04}
    (row,) = summarise(worst.reset_index(), resamples=10, seed=0).to_dict("records")
    assert (row["recall_at_1"], row["recall_at_5"], row["recall_at_10"]) == (0.0, 0.5, 1.0)


def test_each_verdict_of_the_worst_case_is_the_least_of_all_attacks() -> None:
    """Four of ten draws are right against two wrong classes, where most votes are right, and five against one, where
    they are not.
    """
    rows = [
        record("m", "pgd", "adaptive", "a", 0.4, majority=True, worst=False),
        record("m", "apgd", "adaptive", "a", 0.5, majority=False, worst=False, adversarial_rank=2),
    ]
    for table in (with_worst(frame(rows)), up_to_radius(frame(rows), 1.0)):
        for _, worst in table[table["attack"] == WORST].iterrows():
            assert (worst["mean"], worst["majority"], worst["worst"]) == (0.4, False, False)


def test_precision_of_the_worst_case_is_the_least_too_and_a_classifier_has_none(records: pd.DataFrame) -> None:
    rows = [
        record("m", name, access, "a", mean, map_at_r=precision, r_precision=precision)
        for name, access, mean, precision in (
            ("clean", "clean", 1.0, 0.9),
            ("sga", "static", 0.0, 0.5),
            ("pgd", "static", 1.0, 0.2),
        )
    ]
    table = summarise(with_worst(frame(rows)), resamples=10, seed=0).set_index("attack")
    assert table["map_at_r"].to_dict() == {"clean": 0.9, "sga": 0.5, "pgd": 0.2, WORST: 0.2}
    assert table.loc[WORST, "r_precision"] == 0.2 and table.loc[WORST, "recall_at_1"] == 0
    assert "map_at_r" not in summarise(records, resamples=10, seed=0)


def test_an_attack_has_one_row_an_image_at_each_bound(records: pd.DataFrame) -> None:
    within = up_to_radius(records, 2)
    assert (
        len(within[within["attack"] == "pgd"]) == 2 * 4 + 2
    )  # an image, and the bare classifier's once more as adaptive


def test_a_followed_change_counts_among_the_worst_alone(records: pd.DataFrame) -> None:
    more = [record("mine", "cw", "static", "a", 0.125, norm=1.0, eps=1.0, followed=True)]
    table = robust_table(pd.concat([records, frame(more)]), (1, 2))
    assert accuracy(table, "mine", "static", "cw", 1) == 1.0
    assert accuracy(table, "mine", "static", WORST, 1) == accuracy(table, "mine", "static", WORST, 2)
    assert accuracy(table, "mine", "static", WORST, 1) == (0.125 + 0.75) / 2
    assert accuracy(table, "mine", WORST, WORST, 1) == (0.125 + 0.25) / 2


def test_what_falls_within_a_radius_falls_within_a_larger_one(records: pd.DataFrame) -> None:
    at_two = (records["attack"] == "pgd") & (records["eps"] == 2)
    records.loc[at_two, ["mean", "worst", "majority"]] = [1.0, True, True]
    table = robust_table(records, (1, 2))
    assert accuracy(table, "mine", "adaptive", "pgd", 2) == accuracy(table, "mine", "adaptive", "pgd", 1) == 0.25


def test_the_paper_counts_what_the_attack_claimed(records: pd.DataFrame) -> None:
    norms = claimed_norms(records).set_index(["model", "image_id"])["norm"]
    assert norms["mine", "a"] == 0.6 and norms["mine", "b"] == 2.5 and norms["none", "a"] == 0.4
    table = paper_table(records, (1, 2), resamples=10, seed=0).set_index(["model", "attack", "eps"])
    assert table.loc[("mine", "cw", 1), "accuracy"] == 0.5
    assert "pgd" not in set(table.index.get_level_values("attack"))


def test_an_image_that_is_wrong_already_has_norm_zero_and_one_never_fooled_infinity(records: pd.DataFrame) -> None:
    mine = records["model"] == "mine"
    records.loc[mine & (records["access"] == "clean") & (records["image_id"] == "a"), ["mean", "majority"]] = [
        0.0,
        False,
    ]
    smallest = mine & (records["access"] == "adaptive") & (records["image_id"] == "b") & (records["attack"] == "cw")
    records.loc[smallest, "norm"] = 0.0
    norms = claimed_norms(records).set_index(["model", "image_id"])["norm"]
    assert norms["mine", "a"] == 0.0 and math.isinf(norms["mine", "b"])


def test_the_table_says_which_attack_broke_what() -> None:
    ranks = {"pgd": (2, 1, 3, 1), "words": (2, 2, 1, 1)}  # the last image is misclassified when clean
    rows = [
        record(
            "m", attack, "static", image, float(rank == 1), clean_rank=5 if image == "d" else 1, adversarial_rank=rank
        )
        for attack, of_images in ranks.items()
        for image, rank in zip("abcd", of_images, strict=True)
    ]
    table = fallen_by_attack(frame(rows)).set_index("attack")
    assert table[["fallen", "alone"]].to_dict("index") == {
        "pgd": {"fallen": 2, "alone": 1},
        "words": {"fallen": 2, "alone": 1},
    }
    assert fallen_by_attack(frame(rows[:4])).empty


def test_the_table_says_which_member_of_an_ensemble_broke_what() -> None:
    """What stands, or was wrong when clean, is no member's success."""
    members = {"a": ("square", 2), "b": ("apgd-ce", 3), "c": ("apgd-ce", 2), "d": ("square", 1), "e": ("square", 9)}
    rows = [record("m", "aa", "adaptive", i, 0.0, member=by, adversarial_rank=r) for i, (by, r) in members.items()]
    rows[-1]["clean_rank"] = 5
    rows += [record("m", "pgd", "adaptive", image, 0.0, member="") for image in "abcde"]
    table = fallen_by_member(frame(rows))
    assert table[["attack", "member", "fallen"]].values.tolist() == [["aa", "apgd-ce", 2], ["aa", "square", 1]]
    assert fallen_by_member(frame(rows[5:])).empty and fallen_by_member(frame(rows).drop(columns="member")).empty


def test_intervals_are_over_images_and_not_over_their_queries() -> None:
    """Five queries of an image that stand and fall together are no more evidence than one."""
    rows = [
        record(
            "m", "pgd", "adaptive", f"{image}", float(image % 3 == 0), clean_rank=1 + image % 2, query_id=f"{image}-{j}"
        )
        for image in range(30)
        for j in range(5)
    ]
    table = frame(rows)
    (five,) = summarise(table, resamples=200, seed=0).to_dict("records")
    (one,) = summarise(table[table["query_id"].str.endswith("-0")], resamples=200, seed=0).to_dict("records")
    for name in ("recall_at_1", "worst", "majority", "success_flip"):
        assert one[f"{name}_low"] < one[name] < one[f"{name}_high"]
        assert [five[f"{name}_{end}"] for end in ("low", "high")] == pytest.approx(
            [one[f"{name}_{end}"] for end in ("low", "high")]
        )


def test_an_image_that_is_handed_in_again_and_again() -> None:
    """Two images of which 8 and 5 of 10 answers are right: the chance that k of them all are, by counting choices."""
    images = {"x": 0.8, "y": 0.5}
    rows = [record("a", CLEAN, CLEAN, name, 1.0, draws=10) for name in images]
    rows += [record("a", "pgd", "adaptive", name, mean, eps=1.0, norm=1.0, draws=10) for name, mean in images.items()]
    table = resubmitted(frame(rows), 1.0, resamples=10, seed=0).set_index("times")["right"]
    by_hand = {1: (8 + 5) / 10, 2: (28 + 10) / 45, 3: (56 + 10) / 120, 5: (56 + 1) / 252, 10: 0}
    assert table.to_dict() == pytest.approx({times: both / 2 for times, both in by_hand.items()})
