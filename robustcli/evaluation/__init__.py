"""Evaluation of models, clean and under attack: one pipeline for every model, task and defence."""

from robustcli.evaluation.access import ACCESS, SHORTENED, Attacker, AttackRun, Entry, Group
from robustcli.evaluation.classification import ClassificationEvaluator
from robustcli.evaluation.cost import Estimate, estimate
from robustcli.evaluation.evaluation import Evaluation
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Part
from robustcli.evaluation.records import BARE, CLEAN, WORST, per_query, success_rates
from robustcli.evaluation.retrieval import RetrievalEvaluator
from robustcli.evaluation.sentences import SentenceEvaluator

__all__ = [
    "ACCESS",
    "BARE",
    "CLEAN",
    "SHORTENED",
    "WORST",
    "AttackRun",
    "Attacked",
    "Attacker",
    "ClassificationEvaluator",
    "Entry",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "Example",
    "Group",
    "Part",
    "RetrievalEvaluator",
    "SentenceEvaluator",
    "estimate",
    "per_query",
    "success_rates",
]
