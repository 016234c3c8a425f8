"""Builders of training objectives for dual encoders, classifiers and generators, from config nodes."""

from omegaconf import DictConfig

from robustcli.builders.hook import construct
from robustcli.defenses import ClassObjective, OnClasses, PairObjective, VisualObjective
from robustcli.models import Classifier
from robustcli.models.generators import ELBO


def build_class_objective(config: DictConfig, model: Classifier) -> ClassObjective:
    """The classification objective of ``objective=...``, for ``model`` as it is before the training.

    Raises:
        UserError: an objective of dual encoders, and the model is none that it can train.
    """
    objective: ClassObjective | VisualObjective = construct(config, node="objective")
    return OnClasses(objective, model) if isinstance(objective, VisualObjective) else objective


def build_objective(config: DictConfig) -> PairObjective:
    """The image-text objective of ``defense=...``."""
    objective: PairObjective = construct(config, node="defense")
    return objective


def build_elbo(config: DictConfig) -> ELBO:
    """The evidence lower bound of ``objective=...``, on which a generator is trained."""
    objective: ELBO = construct(config, node="objective")
    return objective
