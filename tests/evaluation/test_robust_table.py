"""Robust accuracy at every bound, by hand: which attacks count, and over which images."""

import pandas as pd
import pytest

from robustcli.evaluation.robust_table import ALL, RIGHT, robust_table
from tests.evaluation.test_aggregate import frame, record


@pytest.fixture
def records() -> pd.DataFrame:
    """Of three images ``c`` is wrong at first; C&W without a bound, PGD at bounds of 1 and 2."""
    rows = [record("mine", "clean", "clean", image, mean) for image, mean in zip("abc", (1.0, 0.75, 0.25), strict=True)]
    rows += [
        record("mine", "cw", "adaptive", image, 0.5, norm=norm)
        for image, norm in zip("abc", (0.6, 1.5, 0.1), strict=True)
    ]
    rows += [record("mine", "cw", "static", image, 0.0, norm=0.1) for image in "abc"]
    rows += [
        record("mine", "pgd", "adaptive", image, 0.25, norm=bound, eps=bound) for image in "ab" for bound in (1, 2)
    ]
    rows += [record("mine", "pgd", "adaptive", "c", 0.0, norm=bound, eps=bound) for bound in (1, 2)]
    return frame(rows)


def values(table: pd.DataFrame) -> dict[tuple[str, float, str], float]:
    return {
        (row["attack"], 0.0 if pd.isna(row["eps"]) else row["eps"], row["counted"]): row["accuracy"]
        for row in table.to_dict("records")
    }


def test_fresh_answers_over_all_images_and_over_those_right_at_first(records: pd.DataFrame) -> None:
    found = values(robust_table(records, (1, 2), resamples=10))
    assert found["clean", 0, ALL] == pytest.approx(2 / 3) and found["clean", 0, RIGHT] == 0.875
    assert found["pgd", 1, ALL] == pytest.approx(0.5 / 3) and found["pgd", 1, RIGHT] == 0.25
    assert found["cw", 1, RIGHT] == pytest.approx((0.5 + 0.75) / 2), "b was claimed beyond the bound: its clean answers"
    assert found["cw", 2, ALL] == 0.5, "by the attack that knew the defence alone"
    assert found["worst", 1, ALL] == 0.0, "by static attacks too"


def test_claims_of_the_adaptive_attack_as_the_paper_counts_them(records: pd.DataFrame) -> None:
    found = values(robust_table(records, (1, 2), claimed=True, resamples=10))
    assert {attack for attack, _, _ in found} == {"clean", "cw", "worst"}, "a bounded attack claims no smallest change"
    assert found["cw", 1, ALL] == pytest.approx(1 / 3), "a falls at 0.6, c is wrong at first"
    assert found["cw", 1, RIGHT] == found["worst", 1, RIGHT] == 0.5 and found["cw", 2, RIGHT] == 0.0


def test_without_an_image_that_was_right_there_is_no_such_row(records: pd.DataFrame) -> None:
    wrong = records[records["image_id"] == "c"]
    assert set(robust_table(wrong, (1,), resamples=10)["counted"]) == {ALL}
