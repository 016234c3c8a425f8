"""Judging models, clean and under attack: one record a query, and the figures that are made of the records."""

from robustcli.judging.base import CLEAN, Attacked, Judge, Part
from robustcli.judging.classification import ClassificationJudge
from robustcli.judging.retrieval import RetrievalJudge
from robustcli.judging.summary import KS, WORST, robust_recall, summarise, with_worst, worst_attack

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
