"""`robustcli evaluate`: judge one or several models, clean and under every attack, in one table."""

import pandas as pd
from omegaconf import DictConfig

from robustcli.building import build_candidates, build_data, build_model, choose_device
from robustcli.errors import UserError
from robustcli.evaluation import build_bench, judge_model, robust_recall, write_results
from robustcli.run import Run


def run(config: DictConfig, run: Run) -> float:
    """Judge the models of ``checkpoints`` (label: path), or that of ``checkpoint``; returns the last recall@1."""
    device = choose_device(config.device, config.threads)
    with run.phase("load"):
        data = build_data(config.dataset, config.evaluation.split)
        checkpoints = _checkpoints(config)
        models = {
            str(label): build_model(config.model, path, data, seed=config.seed).to(device)
            for label, path in checkpoints.items()
        }
        candidates = build_candidates(config.candidates, data, next(iter(models.values())))
        bench = build_bench(config, data, config.judges, candidates, config.evaluation.curve_attack)
    run.note(device=str(device))
    run.note_inputs(
        data={data.split: data.provenance()},
        weights={label: model.fingerprint() for label, model in models.items()},
    )
    with run.phase("judge"):
        records = [judge_model(run, bench, model, label) for label, model in models.items()]
    with run.phase("report"):
        table = write_results(run, bench, models, pd.concat(records, ignore_index=True), title="Evaluation")
    return robust_recall(table, list(models)[-1])


def _checkpoints(config: DictConfig) -> dict[str, str | None]:
    """Label -> path of what is judged."""
    if config.checkpoints is None:
        return {"model": config.checkpoint}
    if not isinstance(config.checkpoints, DictConfig) or config.checkpoint is not None:
        raise UserError(
            "checkpoints takes labels and paths, '{clean: a.safetensors, mat: b.safetensors}', and no checkpoint "
            "beside it."
        )
    return {str(label): None if path is None else str(path) for label, path in config.checkpoints.items()}
