"""What a purification report warns of."""

import pandas as pd

from robustcli.evaluation.bounds import WORST
from robustcli.report.purification import masked


def table(**left: float) -> pd.DataFrame:
    rows = [{"access": access, "accuracy": value} for access, value in left.items()]
    return pd.DataFrame(rows).assign(model="mine", attack=WORST, bound=1.0, verdict="mean")


def test_attackers_who_know_less_and_hurt_more_make_a_number_suspect() -> None:
    assert masked(table(static=0.6, bpda=0.4, adaptive=0.3), [1.0], norm="L2") == []
    (sentence,) = masked(table(static=0.6, bpda=0.1, adaptive=0.3), [1.0], norm="L2")
    assert sentence.startswith("SUSPECT: BPDA attacks within L2 1 leave 10.0 % to mine, adaptive ones 30.0 %")
    (sentence,) = masked(table(static=0.2, bpda=0.4, adaptive=0.3), [1.0], norm="L2")
    assert "static attacks" in sentence


def test_nothing_is_said_where_no_adaptive_attack_was_run() -> None:
    assert masked(table(static=0.6), [1.0], norm="L2") == []
