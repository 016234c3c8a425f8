"""`robustcli evaluate`: judge one or several models, clean and under every attack, in one table."""

from omegaconf import DictConfig

from robustcli.engines.loading import Loaded, attack_name, collect_records, load_models
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError


def load(config: DictConfig) -> Loaded:
    """Data, the models by label, and what judges them; raises UserError where they do not fit."""
    return load_models(config, _checkpoints(config), attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Judge the models of ``checkpoints`` (label: path), or that of ``checkpoint``; returns the last recall@1."""
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    with run.phase("judge"):
        records = collect_records(run, loaded.evaluation, loaded.groups)
    with run.phase("report"):
        table = write_results(
            run,
            loaded.evaluation,
            loaded.groups,
            records,
            title="Evaluation",
            diagnostics=config.diagnostics,
            transfer=config.transfer,
        )
    return worst_case_recall(table, loaded.groups[-1].entries[-1])


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
