"""From a composed config to the objective of a training, by the kind of what is trained."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from robustcli.defenses import ClassObjective, Objective
from robustcli.models.generators import ELBO


def build_class_objective(config: DictConfig) -> ClassObjective:
    """The training objective of ``objective=...``."""
    objective: ClassObjective = instantiate(config)
    return objective


def build_objective(config: DictConfig) -> Objective:
    """The training objective of ``defense=...``."""
    objective: Objective = instantiate(config)
    return objective


def build_elbo(config: DictConfig) -> ELBO:
    """The training objective of a generator."""
    objective: ELBO = instantiate(config)
    return objective
