"""Figures and their intervals: retrieval, attack success, bootstrap, the per-query table."""

from robustcli.metrics.intervals import Interval, bootstrap, bootstrap_difference, bootstrap_ratio, wilson
from robustcli.metrics.records import Direction, per_query, success_rates
from robustcli.metrics.retrieval import (
    Ranks,
    Recall,
    SuccessRate,
    attack_success_drop,
    attack_success_flip,
    chance_recall,
    first_true_rank,
    ranks,
    recall_at_k,
    sliced,
)

__all__ = [
    "Direction",
    "Interval",
    "Ranks",
    "Recall",
    "SuccessRate",
    "attack_success_drop",
    "attack_success_flip",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_ratio",
    "chance_recall",
    "first_true_rank",
    "per_query",
    "ranks",
    "recall_at_k",
    "sliced",
    "success_rates",
    "wilson",
]
