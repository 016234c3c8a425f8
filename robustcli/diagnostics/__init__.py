"""Diagnostics of robust numbers: is the model robust, or the attack on it weak?

``diagnose(ClassifierSubject(model, images, labels, threat), attack)`` gives a finding a check: *ok*, *suspect* or *not
run*.
"""

from robustcli.diagnostics.advice import Advice, ConfigKeys
from robustcli.diagnostics.battery import CHECKS, SAMPLES, Part, diagnose, failed
from robustcli.diagnostics.finding import (
    NOT_RUN,
    OK,
    SUSPECT,
    Finding,
    Judgement,
    Status,
    by_number,
    refuse_suspects,
    verdict,
)
from robustcli.diagnostics.subjects import ClassifierSubject, Outcome, RetrievalSubject, Subject

__all__ = [
    "CHECKS",
    "NOT_RUN",
    "OK",
    "SAMPLES",
    "SUSPECT",
    "Advice",
    "ClassifierSubject",
    "ConfigKeys",
    "Finding",
    "Judgement",
    "Outcome",
    "Part",
    "RetrievalSubject",
    "Status",
    "Subject",
    "by_number",
    "diagnose",
    "failed",
    "refuse_suspects",
    "verdict",
]
