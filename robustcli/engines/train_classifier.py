"""`robustcli train-classifier`: train a classifier, and judge it clean and under the judges that are asked for."""

import copy
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from robustcli.builders.attacks import build_classifier_attack
from robustcli.builders.models import build_class_objective, build_classes, build_classifier, choose_device
from robustcli.data import ImageClassData
from robustcli.data.augmentation import Augmentation
from robustcli.evaluation import ClassificationJudge, robust_recall
from robustcli.evaluation.bench import build_bench, judge_model
from robustcli.models import Classifier, save_weights
from robustcli.report.results import write_results
from robustcli.runs.run import Run
from robustcli.training.history import train, write_course
from robustcli.training.tasks import ClassTask
from robustcli.training.trainer import Trainer, TrainerSettings


def run(config: DictConfig, run: Run) -> float:
    """Train as ``config`` says and judge the model; returns its accuracy under the worst judge, or the clean one."""
    device = choose_device(config.trainer.device, config.trainer.threads)
    with run.phase("load"):
        sets = {split: build_classes(config.dataset, split) for split in ("train", "val", config.evaluation.split)}
        model = build_classifier(config.model, config.checkpoint, sets["train"], seed=config.seed).to(device)
        bench = build_bench(config, sets[config.evaluation.split], config.judges, None, config.evaluation.curve_attack)
        trainer = _build_trainer(config, run, model, sets["train"], sets["val"])
    run.note(device=str(device))
    run.note_inputs(
        data={split: data.provenance() for split, data in sets.items()}, weights={"before": model.fingerprint()}
    )
    models, records = {}, []
    if config.evaluation.before:
        with run.phase("judge before"):
            records.append(judge_model(run, bench, model, "before"))
        models["before"] = copy.deepcopy(model)
    with run.phase("train"):
        training = train(trainer, run, "images")
    save_weights(model, run.checkpoint_path("last"), {"trained_with": str(config.objective.name)})
    run.note(weights={"after": model.fingerprint()})
    with run.phase("judge after"):
        records.append(judge_model(run, bench, model, "after"))
    with run.phase("report"):
        table = write_results(
            run,
            bench,
            models | {"after": model},
            pd.concat(records, ignore_index=True),
            title=f"A classifier trained with {config.objective.name}",
            metrics=write_course(run, training),
            shown={"after": f"after {config.objective.name}"},
            diagnostics=config.diagnostics,
        )
    return robust_recall(table, "after")


def _build_trainer(
    config: DictConfig, run: Run, model: Classifier, images: ImageClassData, val: ImageClassData
) -> Trainer:
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    augmentation: Any = OmegaConf.to_container(config.augmentation, resolve=True)
    validation = ClassificationJudge(val, batch_size=config.evaluation.batch_size, limit=config.evaluation.limit)
    task = ClassTask(
        images,
        build_class_objective(config.objective),
        build_classifier_attack(config.attack, seed=config.seed),
        Augmentation(**augmentation),
        batch_size=config.trainer.batch_size,
        seed=config.seed,
    )
    return Trainer(
        model,
        task,
        TrainerSettings(**settings),
        seed=config.seed,
        state=run.directory / "parts" / "state.pt",  # removed with the other parts once the run is done
        validate=lambda trained: {"accuracy": _accuracy(validation, trained)},
    )


@torch.no_grad()
def _accuracy(judge: ClassificationJudge, model: Classifier) -> float:
    batches = (judge.batch(model, rows) for rows in judge.chunks())
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / len(judge)
