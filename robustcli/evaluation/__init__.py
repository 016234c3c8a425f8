"""Judging models, clean and under attack: one record a query, and the figures that are made of the records."""

from robustcli.evaluation.aggregate import KS, WORST, robust_recall, summarise, with_worst, worst_attack
from robustcli.evaluation.base import CLEAN, Attacked, Judge, Part
from robustcli.evaluation.classification import ClassificationJudge
from robustcli.evaluation.retrieval import RetrievalJudge

__all__ = [
    "CLEAN",
    "KS",
    "WORST",
    "Attacked",
    "ClassificationJudge",
    "Judge",
    "Part",
    "RetrievalJudge",
    "robust_recall",
    "summarise",
    "with_worst",
    "worst_attack",
]
