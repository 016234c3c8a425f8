"""Training objectives that make a model robust."""

from robustcli.defenses.classification import ClassObjective, Standard
from robustcli.defenses.losses import info_nce
from robustcli.defenses.objective import Objective

__all__ = ["ClassObjective", "Objective", "Standard", "info_nce"]
