"""`robustcli evaluate`: evaluation of one or several models, clean and under every attack, in one table."""

from omegaconf import DictConfig

from robustcli.engines.loading import Loaded, attack_name, collect_records, load_models
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError


def load(config: DictConfig) -> Loaded:
    """Data, models and evaluation.

    Raises:
        UserError: ``checkpoints`` that are no mapping; or see `load_models`.
    """
    return load_models(config, _checkpoints(config), attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Evaluate the models of ``checkpoints`` or of ``checkpoint``; returns the worst-case recall@1 of the last."""
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
    """Label -> file of the weights of each model to evaluate."""
    if config.checkpoints is None:
        return {"model": config.checkpoint}
    if not isinstance(config.checkpoints, DictConfig) or not config.checkpoints:
        raise UserError(
            f"checkpoints is {config.checkpoints}, without labels: write checkpoints='{{clean: a.safetensors, mat: "
            "b.safetensors}' to compare models, or checkpoint=FILE for one."
        )
    if config.checkpoint is not None:
        raise UserError(
            f"checkpoint is {config.checkpoint} beside checkpoints: give it a label and put it among checkpoints."
        )
    return {str(label): None if path is None else str(path) for label, path in config.checkpoints.items()}
