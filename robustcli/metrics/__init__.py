"""Metrics and their intervals: ranks, recall, attack success, bootstrap."""

from robustcli.metrics.classification import label_ranks
from robustcli.metrics.intervals import Interval, bootstrap, bootstrap_difference, bootstrap_ratio, wilson
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
    same_text_ceiling,
)

__all__ = [
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
    "label_ranks",
    "ranks",
    "recall_at_k",
    "same_text_ceiling",
    "wilson",
]
