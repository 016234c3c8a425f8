"""Warnings and tables of test-time defences."""

import pandas as pd

from robustcli.evaluation.records import WORST
from robustcli.report.defences import access_grid, masking_warnings


def table(**left: float) -> pd.DataFrame:
    rows = [{"access": access, "recall_at_1": value} for access, value in left.items()]
    known = {"model": "mine", "defence": "noise", "attack": WORST, "eps": 1.0, "direction": "image_to_class"}
    return pd.DataFrame(rows).assign(**known)


def test_attackers_who_know_less_and_hurt_more_make_a_number_suspect() -> None:
    assert masking_warnings(table(static=0.6, bpda=0.4, adaptive=0.3), [1.0], norm="l2") == []
    (sentence,) = masking_warnings(table(static=0.6, bpda=0.1, adaptive=0.3), [1.0], norm="l2")
    assert sentence.startswith("SUSPECT: BPDA attacks within L2 1 leave 10.0 % to mine, adaptive ones 30.0 %")
    (sentence,) = masking_warnings(table(static=0.2, bpda=0.4, adaptive=0.3), [1.0], norm="l2")
    assert "static attacks" in sentence


def test_nothing_is_said_where_no_adaptive_attack_was_run() -> None:
    assert masking_warnings(table(static=0.6), [1.0], norm="l2") == []


def test_a_defence_in_front_of_a_dual_encoder_has_a_figure_for_each_direction() -> None:
    one = table(static=0.6, adaptive=0.3, worst=0.25).assign(recall_at_1_low=0.1, recall_at_1_high=0.7)
    both = pd.concat([one.assign(direction="image_to_text"), one.assign(direction="text_to_image", recall_at_1=0.2)])
    grid = access_grid(both, 1.0, norm="linf")
    assert grid.title.startswith("Recall@1 in percent, image to text / text to image, changes up to L-inf 255/255")
    assert grid.rows[0][-1] == "25.0 / 20.0\n±45.0 / ±50.0"
