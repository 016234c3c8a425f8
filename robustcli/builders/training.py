"""Builders of trainers: the initial model, its task and its validation metric, from a composed config.

``sets`` are the data by split, ``train`` and ``val`` among them.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from robustcli import metrics
from robustcli.attacks import ClassifierAttack, RetrievalAttack, SepAttack, SequentialAttack, ThreatModel
from robustcli.builders.attacks import BuiltAttack, Candidates, build_attack, build_threat, check_reach, check_unit
from robustcli.builders.candidates import lazy_candidates
from robustcli.builders.data import augmented, plain
from robustcli.builders.device import on_device
from robustcli.builders.generators import build_generator
from robustcli.builders.hook import construct
from robustcli.builders.models import (
    build_class_texts,
    build_classifier,
    build_dual_encoder,
    classifying,
    refuse_unread_texts,
)
from robustcli.builders.objectives import build_class_objective, build_image_objective, build_objective
from robustcli.config.unread import refuse_all_but, refuse_unread
from robustcli.data import ClassTexts, ImageClassData, ImageTextData
from robustcli.data.augmentation import Augmentation
from robustcli.data.sampling import Replace
from robustcli.defenses import OnClasses, PairObjective, VisualObjective
from robustcli.evaluation import ClassificationEvaluator, RetrievalEvaluator
from robustcli.evaluation.generation import FiguresJudge, GenerationJudge
from robustcli.models import Classifier, DualEncoder, ZeroShot
from robustcli.models.generators import NVAE, Trained
from robustcli.models.prompt import Prompt
from robustcli.training.tasks import ClassTask, GeneratorTask, PairTask, Task
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

_LIKELIHOOD = ("bits_per_dim", "likelihood_bits", "mse")  # of the records of an NVAE, those of a validation


def build_pair_trainer(
    config: DictConfig,
    sets: Mapping[str, ImageTextData | ImageClassData],
    device: torch.device,
    texts: ClassTexts | None = None,
) -> tuple[Trainer, Candidates]:
    """Trainer of a dual encoder, validated by clean recall@1 of both directions, on a set of classes by its zero-shot
    accuracy; and the candidates of text attacks.

    Args:
        sets: ``train`` has captions.
        texts: of the classes, where ``val`` has classes.

    Raises:
        UserError: a model, objective or attack that does not fit the data, or an override that the objective would not
            read.
    """
    pairs, val = sets["train"], sets["val"]
    assert isinstance(pairs, ImageTextData)
    model = build_dual_encoder(config.model, config.checkpoint, pairs, seed=config.seed)
    model = on_device(model, device, "model")
    # The attacks that judge draw from them too: two trainings on other captions must meet the same.
    candidates = lazy_candidates(config.candidates, plain(pairs), model)
    objective = build_objective(config.defense)
    threat, inner = build_threat(config.threat), _inner_threat(config)
    attack = None
    if objective.sides:
        # An attack on one side alone, such as attack=characters, has no node for either.
        unused = {side for side in {"image", "text"} - set(objective.sides) if side in config.attack}
        for side in unused:
            refuse_unread(f"attack.{side}", f"defense={objective.name} leaves the {side} clean")
        # Only the modalities that the objective trains on: the perturbation of another would be computed and dropped.
        node: Any = OmegaConf.merge(config.attack, dict.fromkeys(unused))
        check_unit({"attack": node}, inner, pairs)
        built = build_attack(node, inner, captions=True, candidates=candidates, seed=config.seed, key="attack")
        check_reach(built, [inner])
        attack = _inner_attack(built, objective)
    else:
        refuse_unread("attack", f"defense={objective.name} trains against no attack")
        if not config.attacks:
            refuse_unread("threat", f"defense={objective.name} trains without it, and nor does attacks=none read it")
    if "image" not in objective.sides:
        refuse_unread("trainer.eps_scale", f"defense={objective.name} leaves the images clean")
    sizes = {"batch_size": config.trainer.batch_size, "seed": config.seed}
    # A copy: what the training began with, a resumed one too, whose weights are restored later.
    reference = copy.deepcopy(model).eval() if objective.takes_reference else None
    if isinstance(objective, VisualObjective):
        objective.check_model(model)
    pairing = construct(config.pairing, node="pairing")
    if not isinstance(pairing, Replace) and getattr(objective, "positives", None) == "diagonal":
        raise UserError(
            "pairing=group and append put captions of one image into a batch, which defense.positives=diagonal would "
            "push apart: choose defense.positives=soft or mask."
        )
    if not augmented(pairs):
        for key in ("share", "rise"):
            refuse_unread(f"pairing.{key}", "dataset.augmentations names no augmented pairs")
    task = PairTask(pairs, objective, attack, inner, pairing=pairing, reference=reference, **sizes)
    if isinstance(val, ImageClassData):
        assert texts is not None
        return _trainer(config, model, task, _zero_shot_accuracy(config, model, val, texts, threat)), candidates
    evaluator = RetrievalEvaluator(val, threat, **_validation_settings(config))

    def recall(trained: DualEncoder) -> dict[str, float]:
        ranks = evaluator.ranks(trained)
        directions = {"i2t@1": ranks.image_to_text, "t2i@1": ranks.text_to_image}
        return {name: metrics.recall_at_k(clean_ranks, 1) for name, clean_ranks in directions.items()}

    return _trainer(config, model, task, recall), candidates


def _zero_shot_accuracy(
    config: DictConfig, model: DualEncoder, data: ImageClassData, texts: ClassTexts, threat: ThreatModel
) -> Callable[[DualEncoder], dict[str, float]]:
    """The clean accuracy on ``data`` of a dual encoder that trains, which a copy of it takes over each time."""
    classifier, accuracy = classifying(model, data, texts, store=False), _accuracy(config, data, threat)

    def measured(trained: DualEncoder) -> dict[str, float]:
        classifier.network.load_state_dict(trained.network.state_dict())
        return accuracy(classifier)

    return measured


def _accuracy(
    config: DictConfig, data: ImageClassData, threat: ThreatModel
) -> Callable[[Classifier], dict[str, float]]:
    """The clean accuracy of a classifier on ``data``."""
    evaluator = ClassificationEvaluator(data, threat, **_validation_settings(config))

    def measured(trained: Classifier) -> dict[str, float]:
        batches = (evaluator.batch(trained, rows) for rows in evaluator.chunks())
        correct = sum(int((trained(images).argmax(1) == labels).sum()) for images, labels in batches)
        return {"accuracy": correct / len(evaluator)}

    return measured


def _inner_threat(config: DictConfig) -> ThreatModel:
    """Threat model of the attacks of a training: that of the evaluation, its radius times ``trainer.eps_scale``."""
    threat = build_threat(config.threat)
    scale = config.trainer.eps_scale
    if not threat.radius:
        return threat
    if scale == 0:
        raise UserError("trainer.eps_scale is 0, with which the training would attack no image: give a number above 0.")
    try:
        return dataclasses.replace(threat, eps=scale * threat.radius)
    except UserError as error:
        raise UserError(f"trainer.eps_scale is {scale:g}, times threat.eps: {error}") from error


def _inner_attack(built: BuiltAttack, objective: PairObjective) -> RetrievalAttack:
    """The attack whose parts an objective calls, captions first, then images by its own contrastive loss.

    Raises:
        UserError: an attack that would go about both sides otherwise, or an override of a setting that is not read.
    """
    attack = built.attack
    one_side = isinstance(attack, SepAttack) and len(objective.sides) == 1
    if not isinstance(attack, SequentialAttack) and not one_side:
        raise UserError(
            f"attack is {type(attack).__name__}, whose way of attacking both sides a training does not follow: it "
            "edits the captions and then moves the images, once. Choose attack=mat, and set its attack.image and "
            "attack.text."
        )
    assert isinstance(attack, RetrievalAttack)
    why = f"defense={objective.name} moves the images by the contrastive loss of the training"
    for name in ("loss", "early_stop"):
        refuse_unread(f"{built.keys.image}.{name}", why)
    return attack


def build_class_trainer(config: DictConfig, sets: Mapping[str, ImageClassData], device: torch.device) -> Trainer:
    """Trainer of a classifier, validated by its clean accuracy.

    Raises:
        UserError: a model, objective or attack that does not fit the data, or an override that the objective would not
            read.
    """
    refuse_unread("trainer.negatives", "a classifier contrasts no pairs")
    texts = build_class_texts(config, sets["train"])
    prompt = _prompt(config)
    model = build_classifier(
        config.model, config.checkpoint, sets["train"], seed=config.seed, texts=texts, prompt=prompt
    )
    refuse_unread_texts([model])
    if prompt is not None and not isinstance(model, ZeroShot):
        raise UserError(
            "prompt.length asks for a learnt prompt, which a dual encoder alone reads: choose model=tiny or "
            "model=open_clip."
        )
    model = on_device(model, device, "model")
    threat, inner = build_threat(config.threat), _inner_threat(config)
    objective = build_class_objective(config.objective, model)
    attack = None
    if objective.takes_attack:
        built = build_attack(config.attack, inner, captions=False, candidates=None, seed=config.seed, key="attack")
        check_reach(built, [inner])
        refuse_unread("attack.early_stop", "a training attacks every image to the last step")
        if isinstance(objective, OnClasses):
            refuse_unread("attack.loss", f"objective={objective.name} moves the images by a loss of its own")
        assert isinstance(built.attack, ClassifierAttack)
        attack = built.attack
    else:
        refuse_unread("attack", f"objective={objective.name} trains against no attack")
    if not objective.takes_threat:
        refuse_unread("trainer.eps_scale", f"objective={objective.name} trains without a threat model")
    if not objective.takes_threat and not config.attacks:
        refuse_unread("threat", f"objective={objective.name} trains without it, and attacks=none evaluates without it")
    sizes = {"batch_size": config.trainer.batch_size, "seed": config.seed}
    task = ClassTask(sets["train"], objective, attack, inner, _augmentation(config), **sizes)
    return _trainer(config, model, task, _accuracy(config, sets["val"], threat))


def _prompt(config: DictConfig) -> Prompt | None:
    """The prompt to learn, by ``prompt``; None where the image tower trains."""
    settings = config.prompt
    if settings.length is None:
        refuse_unread("prompt.per_class", "prompt.length is null, so that no prompt is learnt")
        return None
    refuse_unread("templates", "a learnt prompt stands in its place")
    return Prompt(length=settings.length, per_class=settings.per_class, seed=config.seed)


def build_generator_trainer(config: DictConfig, sets: Mapping[str, ImageClassData], device: torch.device) -> Trainer:
    """Trainer of a generator, validated by bits per dimension and the squared error of its reconstructions.

    Raises:
        UserError: a generator of another resolution than the data; or see `moment_temperatures`.
    """
    refuse_unread("trainer.eps_scale", "a generator trains against no attack")
    refuse_unread("trainer.negatives", "a generator contrasts no pairs")
    model = build_generator(config.generator, config.checkpoint, sets["train"], seed=config.seed)
    model = on_device(model, device, "generator")
    if isinstance(model, Trained):
        refuse_unread("moments", f"a generator of the kind {model.kind} has no batch norms")
    elif not moment_temperatures(config):  # read after the training only: a mistake must not cost one
        refuse_all_but("moments", ["temperatures"], "moments.temperatures is [], which estimates none again")
    task = GeneratorTask(
        sets["train"],
        build_image_objective(config.objective, model),
        _augmentation(config),
        batch_size=config.trainer.batch_size,
        seed=config.seed,
    )
    evaluator = build_generation_judge(config, sets["val"], model)

    def likelihood(trained: NVAE | Trained) -> dict[str, float]:
        figures = evaluator.figures(evaluator.records(trained))
        return figures if isinstance(trained, Trained) else {key: figures[key] for key in _LIKELIHOOD}

    return _trainer(config, model, task, likelihood)


def build_generation_judge(config: DictConfig, data: ImageClassData, model: NVAE | Trained) -> Any:
    """The evaluator of a generator on ``data``: of an NVAE bits per dimension, reconstructions and samples; of another
    one the figures that it has.
    """
    kind = FiguresJudge if isinstance(model, Trained) else GenerationJudge
    settings = config.evaluation
    return kind(data, batch_size=settings.batch_size, limit=settings.limit, seed=config.seed)


def moment_temperatures(config: DictConfig) -> list[float]:
    """Sampling temperatures for which the batch-norm moments are estimated again; empty: those of the training serve.

    Raises:
        UserError: the list lacks the temperature of the generator itself, or holds no number.
    """
    values = [parse_number("temperatures", value, node="moments") for value in config.moments.temperatures]
    if values and float(config.generator.temperature) not in values:
        raise UserError(
            f"generator.temperature is {config.generator.temperature}, which moments.temperatures {values} lacks: add "
            "it, or give [] to use the moments of the training at every temperature."
        )
    return values


def _validation_settings(config: DictConfig) -> dict[str, Any]:
    return {"batch_size": config.evaluation.batch_size, "limit": config.evaluation.limit, "seed": config.seed}


def _augmentation(config: DictConfig) -> Augmentation:
    settings: Any = OmegaConf.to_container(config.augmentation, resolve=True)
    return Augmentation(**settings)


def _trainer(config: DictConfig, model: Any, task: Task, validate: Callable[[Any], Mapping[str, float]]) -> Trainer:
    settings: Any = OmegaConf.to_object(config.trainer)  # a TrainerSettings, which the schema has put there
    return Trainer(model, task, settings, seed=config.seed, validate=validate)
