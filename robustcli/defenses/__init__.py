"""Training objectives that make a model robust, and what cleans images in front of an untouched one."""

from robustcli.defenses.classification import ClassObjective, Standard
from robustcli.defenses.cleaner import Cleaner, Step
from robustcli.defenses.losses import info_nce
from robustcli.defenses.objective import Objective
from robustcli.defenses.pgd_at import PGDAdversarialTraining
from robustcli.defenses.preprocess import JPEG, GaussianBlur, NormNoise, preprocessing
from robustcli.defenses.purified import PurifiedClassifier, PurifiedEncoder
from robustcli.defenses.purifier import Purifier
from robustcli.defenses.trades import TRADES

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
