"""Types of the configuration; in the defaults lists of ``conf/`` they make an unknown key or wrong type an early error.

The files of ``conf/`` hold the values, this module the types and the bounds. A group whose choices differ in their keys
(data set, model, attack, defence, judges) is open here: Hydra still refuses a key that the chosen file does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean


@dataclass
class Trainer:
    """How long, how fast and on what a training runs."""

    max_steps: int | None = MISSING
    max_seconds: float | None = MISSING
    batch_size: int = MISSING
    optimizer: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    warmup: float = MISSING
    schedule: str = MISSING
    accumulation: int = MISSING
    clip: float | None = MISSING
    precision: str = MISSING
    ema: float | None = MISSING
    threads: int = MISSING
    device: str = MISSING
    compile: bool = MISSING
    tensorboard: bool = MISSING
    save_minutes: float = MISSING
    eval_every: int | None = MISSING
    log_every: int = MISSING


@dataclass
class Evaluation:
    """On how many images, and how, a model is judged."""

    split: str = MISSING
    limit: int | None = MISSING
    batch_size: int = MISSING
    before: bool = MISSING
    resamples: int = MISSING
    eps_curve: list[Any] = MISSING
    curve_attack: str | None = MISSING
    attacker: str = MISSING


@dataclass
class Common:
    """What every command has."""

    seed: int = MISSING
    checkpoint: str | None = None
    resume: str | None = None
    dataset: Any = MISSING
    model: Any = MISSING
    attack: Any = MISSING
    candidates: Any = MISSING
    diagnostics: str = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class TrainMat(Common):
    """``robustcli train-mat``."""

    defense: Any = MISSING
    judges: Any = MISSING
    trainer: Trainer = field(default_factory=Trainer)


@dataclass
class Augmentation:
    """What is done to the training images."""

    shift: int = MISSING
    flip: bool = MISSING
    crop_scale: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    equalize: float = 0.0
    grayscale: float = 0.0


@dataclass
class TrainClassifier:
    """``robustcli train-classifier``."""

    seed: int = MISSING
    checkpoint: str | None = None
    resume: str | None = None
    dataset: Any = MISSING
    model: Any = MISSING
    attack: Any = MISSING
    objective: Any = MISSING
    judges: Any = MISSING
    diagnostics: str = MISSING
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainer: Trainer = field(default_factory=Trainer)
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class Moments:
    """For which temperatures the moments of the batch norms are estimated again."""

    temperatures: list[float] = MISSING
    batches: int = MISSING
    batch_size: int = MISSING


@dataclass
class TrainGenerator:
    """``robustcli train-generator``."""

    seed: int = MISSING
    checkpoint: str | None = None
    resume: str | None = None
    dataset: Any = MISSING
    generator: Any = MISSING
    objective: Any = MISSING
    half: bool = MISSING
    moments: Moments = field(default_factory=Moments)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainer: Trainer = field(default_factory=Trainer)
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class Attack(Common):
    """``robustcli attack``."""

    purifier: Any = None
    threads: int = MISSING
    device: str = MISSING


@dataclass
class Evaluate(Common):
    """``robustcli evaluate``."""

    checkpoints: Any = None
    purifier: Any = None
    judges: Any = MISSING
    transfer: bool = MISSING
    threads: int = MISSING
    device: str = MISSING


@dataclass
class Purify:
    """``robustcli purify``."""

    seed: int = MISSING
    checkpoint: str | None = None
    resume: str | None = None
    dataset: Any = MISSING
    model: Any = MISSING
    purifier: Any = MISSING
    baselines: Any = MISSING
    variants: Any = None
    protocol: Any = MISSING
    diagnostics: str = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)
    threads: int = MISSING
    device: str = MISSING


@dataclass
class FooledImages:
    """On which images alphas are learned."""

    split: str = MISSING
    eps: Any = MISSING
    images: int = MISSING


@dataclass
class LearnAlphas:
    """``robustcli learn-alphas``."""

    seed: int = MISSING
    checkpoint: str | None = None
    resume: str | None = None
    dataset: Any = MISSING
    model: Any = MISSING
    purifier: Any = MISSING
    adversarial: FooledImages = field(default_factory=FooledImages)
    trials: int = MISSING
    sampler: str = MISSING
    objectives: list[str] = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)
    threads: int = MISSING
    device: str = MISSING


SCHEMAS: Mapping[str, type] = {
    "train_mat": TrainMat,
    "train_classifier": TrainClassifier,
    "train_generator": TrainGenerator,
    "attack": Attack,
    "evaluate": Evaluate,
    "purify": Purify,
    "learn_alphas": LearnAlphas,
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "trainer.optimizer": ("adamw", "sgd", "adamax"),
    "trainer.schedule": ("cosine", "constant"),
    "trainer.precision": ("fp32", "bf16"),
    "diagnostics": ("auto", "full", "strict", "off"),
    "sampler": ("gp", "tpe", "random"),
    "adversarial.split": ("train", "val", "test"),
    "evaluation.split": ("train", "val", "test"),
    "evaluation.attacker": ("query", "item", "both", "all"),
}
# Lower and upper bound, both allowed; None stands for no bound.
BOUNDS: Mapping[str, tuple[float | None, float | None]] = {
    "trainer.max_steps": (0, None),
    "trainer.max_seconds": (0, None),
    "trainer.batch_size": (1, None),
    "trainer.lr": (0, None),
    "trainer.weight_decay": (0, None),
    "trainer.warmup": (0, 1),
    "trainer.accumulation": (1, None),
    "trainer.clip": (0, None),
    "trainer.ema": (0, 1),
    "trainer.threads": (1, None),
    "trainer.save_minutes": (0, None),
    "trainer.eval_every": (0, None),
    "trainer.log_every": (1, None),
    "augmentation.shift": (0, None),
    "augmentation.crop_scale": (0, 1),
    "augmentation.brightness": (0, 1),
    "augmentation.contrast": (0, 1),
    "augmentation.equalize": (0, 1),
    "augmentation.grayscale": (0, 1),
    "evaluation.limit": (1, None),
    "evaluation.batch_size": (1, None),
    "evaluation.resamples": (1, None),
    "threads": (1, None),
    "adversarial.images": (1, None),
    "trials": (1, None),
    "moments.batches": (1, None),
    "moments.batch_size": (2, None),
}


def register() -> None:
    """Make the schemas known to Hydra under ``<command>_schema``, and ``open_params``."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    # The one mapping that takes any key: the parameters of another project's classes.
    store.store(name="open_params", node=DictConfig({"params": DictConfig({}, flags={"struct": False})}))


def check(config: DictConfig) -> None:
    """Refuse a composed config that no run could work with.

    Raises:
        UserError: a value is missing, out of its bounds or not among the choices, or an interpolation leads nowhere.
    """
    try:
        OmegaConf.to_container(config, resolve=True)
        missing = sorted(OmegaConf.missing_keys(config) | _deleted(config))
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from error
    if missing:
        raise UserError(f"{missing[0]} has no value: give it one on the command line as {missing[0]}=VALUE")
    for key, (low, high) in BOUNDS.items():
        _check_bounds(key, OmegaConf.select(config, key), low, high)
    for key, choices in CHOICES.items():
        _check_choice(key, OmegaConf.select(config, key), choices)


def _deleted(config: DictConfig) -> set[str]:
    """Fields of the schema that ``~key`` took away."""
    schema = OmegaConf.get_type(config)
    return {entry.name for entry in fields(schema)} - {str(key) for key in config} if is_dataclass(schema) else set()


def _check_bounds(key: str, value: float | None, low: float | None, high: float | None) -> None:
    if value is None:
        return
    if not ((low is None or value >= low) and (high is None or value <= high)):
        expected = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise UserError(f"{key} is {value}, but must be {expected}")


def _check_choice(key: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is None or value in choices:
        return
    raise UserError(f"{key} is {value!r}{did_you_mean(value, choices)} (choices: {', '.join(choices)})")
