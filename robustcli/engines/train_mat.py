"""`robustcli train-mat`: judge a model, train it against attacks, judge it again."""

import copy
from collections.abc import Mapping
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from robustcli import metrics
from robustcli.builders.attacks import build_attack
from robustcli.builders.models import (
    build_candidates,
    build_captioned,
    build_dual_encoder,
    build_objective,
    choose_device,
)
from robustcli.data.base import ImageTextData
from robustcli.evaluation import RetrievalJudge, robust_recall
from robustcli.evaluation.bench import build_bench, judge_model
from robustcli.models import DualEncoder, save_weights
from robustcli.report.results import write_results
from robustcli.runs.run import Run
from robustcli.training.history import train, write_course
from robustcli.training.tasks import PairTask
from robustcli.training.trainer import Trainer, TrainerSettings


def run(config: DictConfig, run: Run) -> float:
    """Train as ``config`` says, judge the model before and after; returns the robust recall@1 (see `robust_recall`)."""
    device = choose_device(config.trainer.device, config.trainer.threads)
    with run.phase("load"):
        pairs, val, test = (
            build_captioned(config.dataset, split) for split in ("train", "val", config.evaluation.split)
        )
        model = build_dual_encoder(config.model, config.checkpoint, pairs, seed=config.seed).to(device)
        candidates = build_candidates(config.candidates, pairs, model)
        bench = build_bench(config, test, config.judges, candidates, config.evaluation.curve_attack)
        trainer = _build_trainer(config, run, model, pairs, val, candidates)
    _note(run, model, {"train": pairs, "val": val, "test": test})
    models, records = {}, []
    if config.evaluation.before:
        with run.phase("judge before"):
            records.append(judge_model(run, bench, model, "before"))
        models["before"] = copy.deepcopy(model)
    with run.phase("train"):
        training = train(trainer, run, "pairs")
    save_weights(model, run.checkpoint_path("last"), {"trained_with": str(config.defense.name)})
    run.note(weights={"after": model.fingerprint()})
    with run.phase("judge after"):
        records.append(judge_model(run, bench, model, "after"))
    with run.phase("report"):
        table = write_results(
            run,
            bench,
            models | {"after": model},
            pd.concat(records, ignore_index=True),
            title=f"Before and after: {config.defense.name}",
            metrics=write_course(run, training),
            shown={"after": f"after {config.defense.name}"},
            diagnostics=config.diagnostics,
        )
    return robust_recall(table, "after")


def _build_trainer(
    config: DictConfig, run: Run, model: DualEncoder, pairs: ImageTextData, val: ImageTextData, candidates: Any
) -> Trainer:
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    validation = RetrievalJudge(val, batch_size=config.evaluation.batch_size, limit=config.evaluation.limit)
    task = PairTask(
        pairs,
        build_objective(config.defense),
        build_attack(config.attack, candidates, seed=config.seed),
        batch_size=config.trainer.batch_size,
        seed=config.seed,
    )
    return Trainer(
        model,
        task,
        TrainerSettings(**settings),
        seed=config.seed,
        state=run.directory / "parts" / "state.pt",  # removed with the other parts once the run is done
        validate=lambda trained: _recall(validation, trained),
    )


def _recall(validation: RetrievalJudge, model: DualEncoder) -> Mapping[str, float]:
    ranks = validation.ranks(model)
    return {
        "i2t@1": metrics.recall_at_k(ranks.image_to_text, 1),
        "t2i@1": metrics.recall_at_k(ranks.text_to_image, 1),
    }


def _note(run: Run, model: DualEncoder, sets: Mapping[str, ImageTextData]) -> None:
    run.note(device=str(model.device))
    run.note_inputs(
        data={split: data.provenance() for split, data in sets.items()},
        weights={"before": model.fingerprint()},
    )
