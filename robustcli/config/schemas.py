"""Types of the configuration; in the defaults lists of ``conf/`` they make an unknown key or wrong type an early error.

The files of ``conf/`` hold the values, this module the types, the bounds and the choices. A group whose files differ in
their keys (data set, model, attack, defence, suite) is open here (`Any`): Hydra still refuses a key that the chosen
file does not have. A field without a default must get its value from ``conf/``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from robustcli.config.budgets import default_eps
from robustcli.config.checks import bounded, choice

SPLITS = ("train", "val", "test")


@dataclass(kw_only=True)
class TrainerSettings:
    """Settings of a training: length, optimiser, schedule, precision and logging; the keys of ``conf/trainer``.

    Args:
        max_steps, max_seconds: the first of both bounds that is given rules; ``max_seconds`` of computing time is
            turned into a number of steps at the start, from a few timed steps, so that the run itself is bounded by
            steps and can be rebuilt.
        batch_size: pairs or images of a micro-batch; ``accumulation`` of them make an update.
        devices: processes that share the micro-batches of an update, each on a GPU of its own where there are several;
            no number changes for it. Of a run that torchrun or srun starts in several processes it is theirs.
        strategy: ``ddp``: each process holds the optimiser's state, the gradient and the average of all weights; or
            ``zero2``: of its share of them, see `robustcli.training.shards`. No number changes for it.
        negatives: of a contrastive loss: the pairs of the ``micro``-batch, or of the whole ``step``, over all
            processes.
        lr, weight_decay: of the ``optimizer``, see `build_optimiser`, which also knows the choices.
        warmup: share of the steps in which lr rises from 0; ``schedule``: ``cosine`` to 0, or ``constant``.
        eps_scale: radius of the attacks of a training over that of the threat model, by which it is judged. Beyond 1 a
            short training gains recall under attack, at a price in clean recall.
        clip: largest norm of the gradient; None for none.
        precision: ``fp32``, or ``bf16`` autocast where the device has it.
        checkpointing: keep the inputs of the blocks of a transformer alone and compute the rest again for the gradient:
            a third of the time for a multiple of the batch.
        ema: decay of an exponential moving average of the weights, which is then evaluated and saved; None for none.
        compile: compile the image tower (torch.compile), for long runs: the first steps take a minute or two longer.
            Figures may differ from those without it by rounding.
        save_minutes: interval of saved states in minutes; one is saved on SIGTERM and Ctrl-C too.
        eval_every: steps between validations; None: only at the end.
        log_every: steps between rows of the history.
    """

    max_steps: int | None = bounded(0)
    max_seconds: float | None = bounded(0)
    batch_size: int = bounded(1)
    optimizer: str
    lr: float = bounded(0)
    weight_decay: float = bounded(0)
    warmup: float = bounded(0, 1)
    schedule: str = choice("cosine", "constant")
    eps_scale: float = bounded(0)
    accumulation: int = bounded(1)
    devices: int = bounded(1, 1024, default=1)
    strategy: str = choice("ddp", "zero2", default="ddp")
    negatives: str = choice("micro", "step", default="micro")
    clip: float | None = bounded(0)
    precision: str = choice("fp32", "bf16")
    checkpointing: bool = False
    ema: float | None = bounded(0, 1)
    compile: bool
    save_minutes: float = bounded(0)
    eval_every: int | None = bounded(0)
    log_every: int = bounded(1)


@dataclass(kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation: data, draws, access, curve and intervals; the keys of ``conf/evaluation``."""

    split: str = choice(*SPLITS)
    limit: int | None = bounded(1)
    budget_minutes: float | None = bounded(0)
    batch_size: int = bounded(1)
    before: bool
    resamples: int = bounded(1, 1_000_000)
    eps_curve: list[Any]
    curve_attack: str | None
    fresh: int = bounded(1)
    eot: Any
    draws: int | None = bounded(1)
    access: Any
    surrogate: Any
    keep_inputs: bool


@dataclass(kw_only=True)
class ThreatSettings:
    """Settings of the threat model, see `robustcli.attacks.ThreatModel`; the keys of ``conf/threat``.

    Args:
        at: where the perturbation stands: in pixels of the ``data`` set, or at the input of the ``model``, to whose
            size images are resized first.
    """

    norm: str = choice("linf", "l2")
    eps: Any
    words: int = bounded(0)
    characters: int = bounded(0)
    edits: str = choice("query", "item", "both", "all")
    at: str = choice("data", "model", default="data")


@dataclass(kw_only=True)
class DiagnosticsSettings:
    """Settings of the diagnostics, see `robustcli.report.diagnose`; the keys of ``diagnostics``, of which a word alone
    is the extent.
    """

    extent: str = choice("auto", "full", "strict", "off")
    share: float | None = bounded(0, 1000, default=0.25)


@dataclass(kw_only=True)
class CertifySettings:
    """Settings of randomised smoothing, see `robustcli.evaluation.smoothing`; the keys of ``certify``.

    Args:
        sigma: None: no certified row.
    """

    sigma: float | None = bounded(0)
    selection: int = bounded(1)
    samples: int = bounded(1)
    alpha: float = bounded(0, 1)
    defences: bool


@dataclass(kw_only=True)
class AugmentationSettings:
    """Settings of the augmentation of training images; the keys of ``conf/augmentation``."""

    shift: int = bounded(0)
    flip: bool
    crop_scale: float = bounded(0, 1)
    brightness: float = bounded(0, 1)
    contrast: float = bounded(0, 1)
    equalize: float = bounded(0, 1)
    grayscale: float = bounded(0, 1)


@dataclass(kw_only=True)
class MomentsSettings:
    """Sampling temperatures for which the batch-norm moments are estimated again; batches and draws of each."""

    temperatures: list[float]
    batches: int = bounded(1)
    batch_size: int = bounded(2)


@dataclass(kw_only=True)
class AdversarialImagesSettings:
    """Split and number of the adversarial images on which alphas are learned."""

    split: str = choice(*SPLITS)
    images: int = bounded(1)


@dataclass(kw_only=True)
class BaseCommand:
    """Keys of every command."""

    seed: int
    checkpoint: str | None
    resume: str | None
    retry: str | None
    device: str
    threads: int = bounded(1, 1024)
    tracker: Any
    dataset: Any


@dataclass(kw_only=True)
class AugmentCommand(BaseCommand):
    """``robustcli augment``."""

    augment: Any
    split: str = choice(*SPLITS)
    images: int | None = bounded(1)
    batch_size: int = bounded(1)
    shard: int = bounded(1)


@dataclass(kw_only=True)
class PredictionSettings:
    """Constants of the rule by which ``augment-quality`` predicts what will help; the keys of ``prediction``."""

    alignment: float = bounded(0)
    gap: float = bounded(0)


@dataclass(kw_only=True)
class AugmentQualityCommand(BaseCommand):
    """``robustcli augment-quality``."""

    reference: Any
    split: str = choice(*SPLITS)
    items: int = bounded(1)
    batch_size: int = bounded(1)
    resamples: int = bounded(1, 1_000_000)
    prediction: PredictionSettings


@dataclass(kw_only=True)
class EvaluatingCommand(BaseCommand):
    """Keys of the commands that evaluate."""

    evaluation: EvaluationSettings


@dataclass(kw_only=True)
class JudgingCommand(EvaluatingCommand):
    """Keys of the commands that evaluate a model under attack and run diagnostics on its robust figures."""

    model: Any
    threat: ThreatSettings
    diagnostics: Any = field(metadata={"schema": DiagnosticsSettings})  # or a word alone


@dataclass(kw_only=True)
class ClassifyingCommand(JudgingCommand):
    """Keys of the commands in which a dual encoder may classify by texts, see `robustcli.data.class_texts`."""

    templates: Any = None
    class_names: Any = None


@dataclass(kw_only=True)
class TrainMatCommand(ClassifyingCommand):
    """``robustcli train-mat``."""

    attack: Any
    candidates: Any = None
    defense: Any
    pairing: Any
    attacks: Any
    trainer: TrainerSettings


@dataclass(kw_only=True)
class PromptSettings:
    """The prompt that a training learns in place of templates, see `robustcli.models.prompt.Prompt`; None: none."""

    length: int | None = bounded(1)
    per_class: bool


@dataclass(kw_only=True)
class TrainClassifierCommand(ClassifyingCommand):
    """``robustcli train-classifier``."""

    attack: Any
    objective: Any
    attacks: Any
    augmentation: AugmentationSettings
    trainer: TrainerSettings
    prompt: PromptSettings


@dataclass(kw_only=True)
class TrainGeneratorCommand(EvaluatingCommand):
    """``robustcli train-generator``."""

    generator: Any
    objective: Any
    half: bool
    moments: MomentsSettings
    augmentation: AugmentationSettings
    trainer: TrainerSettings


@dataclass(kw_only=True)
class AttackCommand(ClassifyingCommand):
    """``robustcli attack``."""

    processes: int = bounded(1, 1024)
    attack: Any
    candidates: Any = None
    purifier: Any = None


@dataclass(kw_only=True)
class EvaluateCommand(ClassifyingCommand):
    """``robustcli evaluate``."""

    processes: int = bounded(1, 1024)
    attack: Any = None
    attacks: Any
    candidates: Any = None
    purifier: Any = None
    checkpoints: Any = None
    models: Any = None
    transfer: bool


@dataclass(kw_only=True)
class PurifyCommand(ClassifyingCommand):
    """``robustcli purify``."""

    processes: int = bounded(1, 1024)
    purifier: Any
    baselines: Any
    variants: Any = None
    certify: CertifySettings
    attacks: Any


@dataclass(kw_only=True)
class LearnAlphasCommand(EvaluatingCommand):
    """``robustcli learn-alphas``."""

    model: Any
    threat: ThreatSettings
    purifier: Any
    alphas: Any
    adversarial: AdversarialImagesSettings
    trials: int = bounded(1)
    sampler: str = choice("gp", "tpe", "random")
    objectives: list[str] | None


# By the name of the command's primary config: conf/<name>.yaml has `<name>_schema` in its defaults list.
SCHEMAS: Mapping[str, type[BaseCommand]] = {
    "train_mat": TrainMatCommand,
    "train_classifier": TrainClassifierCommand,
    "train_generator": TrainGeneratorCommand,
    "attack": AttackCommand,
    "evaluate": EvaluateCommand,
    "purify": PurifyCommand,
    "learn_alphas": LearnAlphasCommand,
    "augment": AugmentCommand,
    "augment_quality": AugmentQualityCommand,
}


@cache
def register() -> None:
    """Registration of the schemas with Hydra under ``<command>_schema``, of ``open_params``, and of the resolver
    ``default_eps``.
    """
    OmegaConf.register_new_resolver("default_eps", default_eps, replace=True)
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    # The one mapping that takes any key: the parameters of another project's classes.
    store.store(name="open_params", node=DictConfig({"params": DictConfig({}, flags={"struct": False})}))
