"""Defences: training objectives for robustness, and cleaners of images in front of an untouched model."""

from robustcli.defenses.objectives.classification import ClassObjective, Standard
from robustcli.defenses.objectives.losses import info_nce
from robustcli.defenses.objectives.multimodal import Objective
from robustcli.defenses.objectives.pgd_at import PGDAdversarialTraining
from robustcli.defenses.objectives.trades import TRADES
from robustcli.defenses.preprocessing import JPEG, GaussianBlur, NormNoise, preprocessing
from robustcli.defenses.purification.cleaner import Cleaner, Step
from robustcli.defenses.purification.purified import PurifiedClassifier, PurifiedEncoder
from robustcli.defenses.purification.purifier import Purifier

__all__ = [
    "JPEG",
    "TRADES",
    "ClassObjective",
    "Cleaner",
    "GaussianBlur",
    "NormNoise",
    "Objective",
    "PGDAdversarialTraining",
    "PurifiedClassifier",
    "PurifiedEncoder",
    "Purifier",
    "Standard",
    "Step",
    "info_nce",
    "preprocessing",
]
