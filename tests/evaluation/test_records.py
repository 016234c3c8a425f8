"""The per-query table and the figures that are read off it."""

import pandas as pd
import pytest
import torch

from robustcli.evaluation import per_query, success_rates


def table() -> pd.DataFrame:
    clean, adversarial = torch.tensor([1, 1, 3, 1]), torch.tensor([1, 4, 1, 2])
    return per_query("text_to_image", ["a", "b", "c", "d"], ["x", "x", "y", "y"], clean, adversarial)


def test_one_row_a_query_with_what_happened_to_it():
    found = table()
    assert list(found.columns) == [
        "direction",
        "query_id",
        "image_id",
        "clean_rank",
        "adversarial_rank",
        "clean_correct",
        "adversarial_correct",
        "status",
    ]
    assert found["status"].tolist() == ["survived", "fooled", "already_wrong", "fooled"]
    assert found["clean_correct"].tolist() == [True, True, False, True]
    assert found["adversarial_correct"].tolist() == [True, False, True, False]


def test_without_an_attack_the_columns_are_null_and_stay_so_in_parquet(tmp_path):
    found = per_query("image_to_text", [0, 1], [0, 1], torch.tensor([1, 2]))
    assert found["status"].tolist() == ["not_attacked"] * 2
    found.to_parquet(tmp_path / "records.parquet")
    again = pd.read_parquet(tmp_path / "records.parquet")
    assert again["adversarial_rank"].isna().all() and again["adversarial_correct"].isna().all()
    assert again["clean_rank"].tolist() == [1, 2]
    assert success_rates(found)["success_flip"] is None


def test_success_rates_are_aggregations_of_the_rows():
    assert success_rates(table()) == {
        "success_drop": pytest.approx(1 / 4),
        "success_drop_denominator": 4,
        "success_flip": pytest.approx(2 / 3),
        "success_flip_denominator": 3,
    }


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="one length"):
        per_query("image_to_text", [0], [0, 1], torch.tensor([1, 2]))
