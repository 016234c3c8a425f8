"""Builders of training objectives for dual encoders, classifiers and generators, from config nodes."""

from typing import Any

from omegaconf import DictConfig

from robustcli.builders.hook import construct
from robustcli.defenses import ClassObjective, OnClasses, PairObjective, VisualObjective
from robustcli.models import Classifier
from robustcli.models.generators import NVAE, Trained
from robustcli.utils.errors import UserError


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


def build_image_objective(config: DictConfig, model: NVAE | Trained) -> Any:
    """The objective of ``generator_objective@objective=...``, on which a generator is trained.

    Raises:
        UserError: one of generators of another kind than ``model``.
    """
    objective: Any = construct(config, node="objective")
    takes = getattr(objective, "takes", NVAE)
    if not isinstance(model, takes):
        raise UserError(
            f"objective {type(objective).__name__} trains {takes.__name__}, but the generator is "
            f"{type(model).__name__}: choose generator_objective@objective=... to fit, of `robustcli list "
            "generator_objective`."
        )
    return objective
