"""Metrics and their intervals: ranks, recall, attack success, distances of distributions, bootstrap."""

from robustcli.metrics.classification import label_ranks
from robustcli.metrics.distributions import PairedMMD, frechet_distance, jensen_shannon, median_bandwidth
from robustcli.metrics.intervals import (
    Interval,
    bootstrap,
    bootstrap_difference,
    bootstrap_ratio,
    jackknife,
    wilson,
)
from robustcli.metrics.retrieval import (
    Ranking,
    Ranks,
    Recall,
    SuccessRate,
    attack_success_drop,
    attack_success_flip,
    chance_recall,
    first_true_rank,
    ranking,
    ranks,
    recall_at_k,
    same_text_ceiling,
)
from robustcli.metrics.texts import SelfBLEU, distinct_n

__all__ = [
    "Interval",
    "PairedMMD",
    "Ranking",
    "Ranks",
    "Recall",
    "SelfBLEU",
    "SuccessRate",
    "attack_success_drop",
    "attack_success_flip",
    "bootstrap",
    "bootstrap_difference",
    "bootstrap_ratio",
    "chance_recall",
    "distinct_n",
    "first_true_rank",
    "frechet_distance",
    "jackknife",
    "jensen_shannon",
    "label_ranks",
    "median_bandwidth",
    "ranking",
    "ranks",
    "recall_at_k",
    "same_text_ceiling",
    "wilson",
]
