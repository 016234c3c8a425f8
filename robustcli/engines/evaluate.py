"""`robustcli evaluate`: evaluation of one or several models, clean and under every attack, in one table."""

from omegaconf import DictConfig

from robustcli.config.unread import refuse_unread
from robustcli.engines.costs import judge_within
from robustcli.engines.loading import Loaded, NamedModel, attack_name, collect_records, load_models
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError


def load(config: DictConfig) -> Loaded:
    """Data, models and evaluation.

    Raises:
        UserError: ``models`` or ``checkpoints`` that are no mapping; or see `load_models`.
    """
    models = _checkpoints(config) if config.models is None else _models(config)
    return load_models(config, models, attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Evaluate those of ``models``, ``checkpoints`` or ``checkpoint``; returns the worst-case recall@1 of the last."""
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    cost = judge_within(run, config, loaded.evaluation, loaded.groups)
    with run.phase("judge"):
        records = collect_records(run, loaded.evaluation, loaded.groups, cost, loaded.keep(config, run), config=config)
    with run.phase("report"):
        table = write_results(
            run,
            loaded.evaluation,
            loaded.groups,
            records,
            title="Evaluation",
            diagnostics=config.diagnostics.extent,
            share=config.diagnostics.share,
            transfer=config.transfer,
        )
    return worst_case_recall(table, loaded.groups[-1].entries[-1])


def _models(config: DictConfig) -> dict[str, NamedModel]:
    """The models of ``models``, each with the weights that its node names."""
    if not isinstance(config.models, DictConfig) or not config.models:
        raise UserError(
            f"models is {config.models}, without labels: write models='{{small: digits, mine: my_module.Net}}'."
        )
    for given in ("checkpoint", "checkpoints"):
        if config[given] is not None:
            raise UserError(f"{given} is given beside models: give each of them its own, models.LABEL.checkpoint=FILE.")
    refuse_unread("model", "models names those that are evaluated")
    nodes = {str(label): node for label, node in config.models.items()}
    for label, node in nodes.items():
        if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
            raise UserError(
                f"models.{label} is {node!r}, but must be the config of a model: in a config file it is chosen in the "
                f"defaults list, `- /model@models.{label}: digits`."
            )
    return {label: NamedModel(node, None, f"models.{label}") for label, node in nodes.items()}


def _checkpoints(config: DictConfig) -> dict[str, NamedModel]:
    """``model=...``, or what a file itself says it is of, with each of the files of weights to evaluate."""
    if config.checkpoints is None:
        return {"model": NamedModel(config.model, config.checkpoint)}
    if not isinstance(config.checkpoints, DictConfig) or not config.checkpoints:
        raise UserError(
            f"checkpoints is {config.checkpoints}, without labels: write checkpoints='{{clean: a.safetensors, mat: "
            "b.safetensors}' to compare models, or checkpoint=FILE for one."
        )
    if config.checkpoint is not None:
        raise UserError(
            f"checkpoint is {config.checkpoint} beside checkpoints: give it a label and put it among checkpoints."
        )
    paths = {str(label): None if path is None else str(path) for label, path in config.checkpoints.items()}
    return {label: NamedModel(config.model, path, f"checkpoints.{label}") for label, path in paths.items()}
