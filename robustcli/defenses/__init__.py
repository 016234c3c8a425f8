"""Defences: training objectives for robustness, and cleaners of images in front of an untouched model."""

from robustcli.defenses.jpeg import JPEG
from robustcli.defenses.objectives.anchored import FARE, LEAF
from robustcli.defenses.objectives.classification import ClassObjective, Standard
from robustcli.defenses.objectives.losses import info_nce
from robustcli.defenses.objectives.mat_trades import MATTrades
from robustcli.defenses.objectives.mmcoa import MMCoA
from robustcli.defenses.objectives.multimodal import Objective
from robustcli.defenses.objectives.pairs import PairObjective
from robustcli.defenses.objectives.pgd_at import PGDAdversarialTraining
from robustcli.defenses.objectives.rivals import AGFT, PMGAFT, TGAZSR, AdvFLYP, SimCLIP, TeCoA
from robustcli.defenses.objectives.trades import TRADES
from robustcli.defenses.objectives.visual import OnClasses, VisualObjective
from robustcli.defenses.preprocessing import GaussianBlur, NormNoise, preprocessing
from robustcli.defenses.purification.alpha_rules import InformativeAlphas, SearchedAlphas
from robustcli.defenses.purification.cleaner import Cleaner, Step
from robustcli.defenses.purification.purified import PurifiedClassifier, PurifiedEncoder
from robustcli.defenses.purification.purifier import Purifier
from robustcli.defenses.purification.rivals import AdversarialVAE, DiffPure, NoisyVAE

__all__ = [
    "AGFT",
    "FARE",
    "JPEG",
    "LEAF",
    "PMGAFT",
    "TGAZSR",
    "TRADES",
    "AdvFLYP",
    "AdversarialVAE",
    "ClassObjective",
    "Cleaner",
    "DiffPure",
    "GaussianBlur",
    "InformativeAlphas",
    "MATTrades",
    "MMCoA",
    "NoisyVAE",
    "NormNoise",
    "Objective",
    "OnClasses",
    "PGDAdversarialTraining",
    "PairObjective",
    "PurifiedClassifier",
    "PurifiedEncoder",
    "Purifier",
    "SearchedAlphas",
    "SimCLIP",
    "Standard",
    "Step",
    "TeCoA",
    "VisualObjective",
    "info_nce",
    "preprocessing",
]
