"""Training objectives that make a model robust."""

from robustcli.defenses.losses import info_nce
from robustcli.defenses.objective import Objective

__all__ = ["Objective", "info_nce"]
