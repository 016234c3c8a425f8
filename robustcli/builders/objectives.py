"""Builders of training objectives for dual encoders, classifiers and generators, from config nodes."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from robustcli.defenses import ClassObjective, Objective
from robustcli.models.generators import ELBO


def build_class_objective(config: DictConfig) -> ClassObjective:
    """The classification objective of ``objective=...``."""
    objective: ClassObjective = instantiate(config)
    return objective


def build_objective(config: DictConfig) -> Objective:
    """The image-text objective of ``defense=...``."""
    objective: Objective = instantiate(config)
    return objective


def build_elbo(config: DictConfig) -> ELBO:
    """The evidence lower bound of ``objective=...``, on which a generator is trained."""
    objective: ELBO = instantiate(config)
    return objective
