"""`robustcli train-mat`: judge a model, train it against attacks, judge it again."""

import copy
from collections.abc import Mapping
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from robustcli import files, metrics
from robustcli.building import build_attack, build_candidates, build_data, build_model, build_objective, choose_device
from robustcli.data.base import ImageTextData
from robustcli.errors import UserError
from robustcli.evaluation import build_bench, judge_model, robust_recall, write_results
from robustcli.judging import Judge
from robustcli.models import DualEncoder, save_weights
from robustcli.report.progress import Progress
from robustcli.run import Run
from robustcli.trainer import Trainer, TrainerSettings, Training


def run(config: DictConfig, run: Run) -> float:
    """Train as ``config`` says, judge the model before and after; returns the robust recall@1 (see `robust_recall`)."""
    device = choose_device(config.trainer.device, config.trainer.threads)
    with run.phase("load"):
        train, val, test = (build_data(config.dataset, split) for split in ("train", "val", config.evaluation.split))
        model = build_model(config.model, config.checkpoint, train, seed=config.seed).to(device)
        candidates = build_candidates(config.candidates, train, model)
        bench = build_bench(config, test, config.judges, candidates, config.evaluation.curve_attack)
        trainer = _build_trainer(config, run, model, train, val, candidates)
    _note(run, model, {"train": train, "val": val, "test": test})
    models, records = {}, []
    if config.evaluation.before:
        with run.phase("judge before"):
            records.append(judge_model(run, bench, model, "before"))
        models["before"] = copy.deepcopy(model)
    with run.phase("train"):
        training = _train(trainer, run)
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
            metrics=_write_course(run, training),
            shown={"after": f"after {config.defense.name}"},
        )
    return robust_recall(table, "after")


def _build_trainer(
    config: DictConfig, run: Run, model: DualEncoder, train: ImageTextData, val: ImageTextData, candidates: Any
) -> Trainer:
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    validation = Judge(val, batch_size=config.evaluation.batch_size, limit=config.evaluation.limit)
    return Trainer(
        model,
        train,
        build_objective(config.defense),
        build_attack(config.attack, candidates, seed=config.seed),
        TrainerSettings(**settings),
        seed=config.seed,
        state=run.directory / "parts" / "state.pt",  # removed with the other parts once the run is done
        validate=lambda trained: _recall(validation, trained),
    )


def _train(trainer: Trainer, run: Run) -> Training:
    trainer.prepare()
    board = _tensorboard(run) if trainer.settings.tensorboard else None
    with Progress(trainer.training.steps, "train", done=trainer.step, unit="pairs") as progress:

        def show(figures: Mapping[str, float]) -> None:
            progress.advance(1, samples=trainer.pairs_per_step, **figures)
            if board is not None:
                for name, value in figures.items():
                    board.add_scalar(name, value, trainer.step)

        return trainer.fit(show)


def _tensorboard(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("trainer.tensorboard=true needs TensorBoard: pip install 'robustcli[tracking]'.") from error
    return SummaryWriter(str(run.directory / "tensorboard"))


def _recall(validation: Judge, model: DualEncoder) -> Mapping[str, float]:
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


def _write_course(run: Run, training: Training) -> dict[str, float]:
    """Write ``training.csv``; returns the figures of the last step."""
    with files.atomic(run.directory / "training.csv") as path:
        pd.DataFrame(training.history).to_csv(path, index=False)
    last = {f"train/{key}": value for key, value in (training.history or [{}])[-1].items() if key != "step"}
    return {"train/steps": float(training.steps), **last}
