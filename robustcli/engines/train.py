"""`robustcli train-mat`, `train-classifier` and `train-generator`: training of a model, and its evaluation."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig

from robustcli.attacks import Attack
from robustcli.builders.data import build_classes, build_pictured, build_training_pairs
from robustcli.builders.device import choose_device
from robustcli.builders.evaluation import build_attacks, build_evaluation
from robustcli.builders.models import build_class_texts, classifying
from robustcli.builders.training import (
    build_class_trainer,
    build_generation_judge,
    build_generator_trainer,
    build_pair_trainer,
    moment_temperatures,
)
from robustcli.config.unread import refuse_all_but, refuse_unread
from robustcli.data import ClassTexts
from robustcli.engines.costs import judge_within, tell_training
from robustcli.engines.loading import (
    candidate_fingerprints,
    collect_records,
    note_class_texts,
    print_notes,
    refuse_unread_candidates,
)
from robustcli.engines.together import check_processes, met, together
from robustcli.engines.together import follow as train_with
from robustcli.evaluation import Evaluation, Group
from robustcli.evaluation.aggregate import robust_recall
from robustcli.models import ZeroShot, save_weights
from robustcli.models.generators import NVAE, Trained, load_nvae, moments_at, save_nvae
from robustcli.models.prompt import save_prompt
from robustcli.report.generation import write_generation
from robustcli.report.results import write_results
from robustcli.runs.run import Run
from robustcli.training.history import train, write_history
from robustcli.training.tasks import PairTask
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import UserError
from robustcli.utils.world import world_of


@dataclass(frozen=True, kw_only=True)
class LoadedTraining:
    """Data by split (``train``, ``val`` and the one of the evaluation), and the trainer, which holds the model.

    ``evaluation`` is that of dual encoders and classifiers; None for a generator, which is not attacked. ``texts`` are
    those of the classes that a dual encoder was trained on as captions.
    """

    sets: Mapping[str, Any]
    trainer: Trainer
    evaluation: Evaluation | None
    texts: ClassTexts | None = None

    def answering(self, model: Any) -> Any:
        """What the evaluation judges of ``model``: itself, or where it learnt classes by their texts, a copy of it that
        classifies by them.
        """
        return model if self.texts is None else classifying(model, self.sets["val"], self.texts)


def load(config: DictConfig) -> LoadedTraining:
    """All parts of a training and its evaluation, built before any work so that a mismatch is an early error.

    Raises:
        UserError: parts that do not fit together.
    """
    check_processes(config)
    device, pairs = choose_device(config.device, config.threads), "defense" in config
    read = build_pictured if pairs else build_classes
    sets: dict[str, Any] = {split: read(config.dataset, split) for split in ("val", config.evaluation.split)}
    texts = build_class_texts(config, sets["val"]) if pairs else None
    if (
        pairs
        and config.evaluation.split == "train"
        and (config.dataset.augmentations or config.dataset.captions_per_image)
    ):
        raise UserError(
            "evaluation.split=train judges the whole training set, which dataset.augmentations and "
            "dataset.captions_per_image change: choose evaluation.split=val or test."
        )
    judged = sets[config.evaluation.split]
    train_set = (
        build_training_pairs(config.dataset, "train", texts) if pairs else build_classes(config.dataset, "train")
    )
    sets = {"train": train_set} | sets | {"train": train_set}
    if "generator" in config:
        refuse_all_but("evaluation", ("split", "limit", "batch_size"), "a generator is not attacked")
        return LoadedTraining(sets=sets, trainer=build_generator_trainer(config, sets, device), evaluation=None)
    if pairs:
        trainer, candidates = build_pair_trainer(config, sets, device, texts)
    else:
        trainer, candidates = build_class_trainer(config, sets, device), None
    refuse_unread("evaluation.keep_inputs", "`robustcli attack checkpoint=...` keeps those of what was trained")
    refuse_unread("evaluation.surrogate", "what was trained is attacked itself: `robustcli evaluate` takes surrogates")
    attacks = build_attacks(config, judged, candidates)
    if pairs:
        refuse_unread_candidates(_inner_attack(trainer) | {name: built.attack for name, built in attacks.items()})
    evaluation = build_evaluation(config, judged, attacks)
    return LoadedTraining(sets=sets, trainer=trainer, evaluation=evaluation, texts=texts)


def run(config: DictConfig, run: Run) -> float:
    """Train as ``config`` says and evaluate the model, before the training too if ``evaluation.before`` is set.

    Returns the recall@1 under the worst attack, see `robust_recall`, or the bits per dimension of an NVAE, or the first
    figure of another generator.
    """
    with run.phase("load"):
        loaded = load(config)
    model, trainer, evaluation = loaded.trainer.model, loaded.trainer, loaded.evaluation
    run.note(device=str(model.device))
    begun = loaded.answering(model)
    note_class_texts(run, [begun])
    judged = None if evaluation is None else config.evaluation.split  # its notes stand under the table
    print_notes({split: data for split, data in loaded.sets.items() if split != judged})
    data = {split: data.provenance() for split, data in loaded.sets.items()}
    attacks = _inner_attack(trainer) | ({} if evaluation is None else dict(evaluation.attacks))
    run.note_inputs(data=data, weights={"before": model.fingerprint()}, candidates=candidate_fingerprints(attacks))
    unit, groups, records = "pairs" if "defense" in config else "images", [], []
    judges_before = evaluation is not None and config.evaluation.before
    # A copy: the report attacks it again for its pictures, after the training has changed the weights.
    untrained = copy.deepcopy(model) if judges_before and begun is model else begun
    with together(run, config, trainer):
        with run.phase("load"):
            trainer.prepare(run.directory / "parts" / "state.zip")  # a resumed training is where it was from here on
            tell_training(run, trainer, unit)
        if evaluation is not None:
            after = Group(bare=evaluation.evaluator.entry("after", loaded.answering(model)))
            cost = judge_within(run, config, evaluation, [after], times=1 + judges_before)
            if judges_before:
                groups.append(Group(bare=evaluation.evaluator.entry("before", untrained)))
                with run.phase("judge before"):
                    records.append(collect_records(run, evaluation, groups, cost))
        with run.phase("train"):
            training = train(trainer, run, unit)
    metrics = write_history(run, training)
    if isinstance(model, NVAE | Trained):
        return _judge_generator(config, run, model, loaded.sets[config.evaluation.split], metrics)
    assert evaluation is not None

    name = str(config.defense.name if "defense" in config else config.objective.name)
    save_weights(model, run.checkpoint_path("last"), {"trained_with": name})
    if isinstance(model, ZeroShot) and model.prompt is not None:
        save_prompt(model.dual, run.checkpoint_path("prompt"))
    run.note(weights={"after": model.fingerprint()})
    # Anew: what is known of its clean answers is old.
    after = Group(bare=evaluation.evaluator.entry("after", loaded.answering(model)))
    with run.phase("judge after"):
        records.append(collect_records(run, evaluation, [after], cost))
    with run.phase("report"):
        table = write_results(
            run,
            evaluation,
            [*groups, after],
            pd.concat(records, ignore_index=True),
            title=f"Before and after: {name}" if "defense" in config else f"A classifier trained with {name}",
            metrics=metrics,
            shown={"after": f"after {name}"},
            diagnostics=config.diagnostics.extent,
            share=config.diagnostics.share,
        )
    return robust_recall(table, "after")


def follow(config: DictConfig) -> None:
    """The part of a process beside the first one, which torchrun or srun have started: it trains along, and no more.

    Raises:
        UserError: see `load`.
        LostProcess: another process ended before its work.
    """
    loaded, world = load(config), world_of()
    assert world is not None
    with met(world, loaded.trainer.model.device) as group:
        train_with(loaded.trainer, group)


def end_followers() -> None:
    """Let the processes that torchrun or srun have started beside this one end: the run is done already."""
    if (world := world_of()) is not None:
        with met(world, torch.device("cpu")) as group:
            group.shared(lambda: b"")


def _inner_attack(trainer: Trainer) -> dict[str, Attack | None]:
    """The attack on captions and images that a training of pairs runs, under the name of its config node."""
    return {"attack": trainer.task.attack} if isinstance(trainer.task, PairTask) else {}


def _judge_generator(
    config: DictConfig, run: Run, model: NVAE | Trained, data: Any, metrics: Mapping[str, float]
) -> float:
    """Save a trained generator, an NVAE with its moments, and evaluate the saved file; returns its bits per dimension,
    or its first figure.
    """
    saved, settings = run.checkpoint_path("last"), config.moments
    # Evaluated as others will load it, rounding of `half` included.
    if isinstance(model, Trained):
        model.save(saved, half=config.half)
        learnt: NVAE | Trained = type(model).load(saved).to(model.device)
    else:
        with run.phase("moments"):
            # In training the batch norms of the decoder saw latents of the posterior; those of the prior differ.
            at = {
                temperature: moments_at(
                    model, temperature, batches=settings.batches, batch_size=settings.batch_size, seed=config.seed
                )
                for temperature in moment_temperatures(config)
            }
            save_nvae(model, saved, at=at, half=config.half)
        learnt = load_nvae(saved, temperature=model.temperature).to(model.device)
    run.note(weights={"after": learnt.fingerprint()})
    evaluator = build_generation_judge(config, data, learnt)
    with run.phase("judge"):
        records = run.records_part("records", lambda: evaluator.records(learnt))
    with run.phase("report"):
        figures = write_generation(run, evaluator, learnt, records, metrics)
    return figures["bits_per_dim"] if "bits_per_dim" in figures else next(iter(figures.values()))
