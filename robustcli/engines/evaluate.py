"""`robustcli evaluate`: judge one or several models, clean and under every attack, in one table."""

import pandas as pd
from omegaconf import DictConfig

from robustcli.builders.models import build_surrogate, choose_device
from robustcli.engines.loading import load_subject
from robustcli.evaluation import robust_recall
from robustcli.evaluation.bench import build_bench, judge_model
from robustcli.report.results import write_results
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError


def run(config: DictConfig, run: Run) -> float:
    """Judge the models of ``checkpoints`` (label: path), or that of ``checkpoint``; returns the last recall@1."""
    device = choose_device(config.device, config.threads)
    with run.phase("load"):
        data, models, candidates = load_subject(config, _checkpoints(config), device)
        surrogate = build_surrogate(config, data, device)
        bench = build_bench(config, data, config.judges, candidates, config.evaluation.curve_attack, surrogate)
    run.note(device=str(device))
    run.note_inputs(
        data={data.split: data.provenance()},
        weights={label: model.fingerprint() for label, model in models.items()},
    )
    with run.phase("judge"):
        records = [judge_model(run, bench, model, label) for label, model in models.items()]
    with run.phase("report"):
        table = write_results(
            run,
            bench,
            models,
            pd.concat(records, ignore_index=True),
            title="Evaluation",
            diagnostics=config.diagnostics,
            transfer=config.transfer,
        )
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
