"""`robustcli attack`: one attack on a data set, with every adversarial image and caption written."""

from omegaconf import DictConfig

from robustcli.config.unread import refuse_unread
from robustcli.engines.costs import judge_within
from robustcli.engines.loading import Loaded, NamedModel, attack_name, collect_records, load_models
from robustcli.evaluation.stored import Stored
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run


def load(config: DictConfig) -> Loaded:
    """Data, model and evaluation by the one attack.

    Raises:
        UserError: see `load_models`.
    """
    refuse_unread("evaluation.keep_inputs", "this command always keeps them")
    return load_models(config, {"model": NamedModel(config.model, config.checkpoint)}, attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Attack with ``attack`` and write the adversarial images and captions to ``adversarial/``, see `Stored`; returns
    the worst-case recall@1.
    """
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    cost = judge_within(run, config, loaded.evaluation, loaded.groups)
    keep = Stored(run.directory, loaded.evaluation, loaded.groups).keep
    with run.phase("attack"):
        records = collect_records(run, loaded.evaluation, loaded.groups, cost, keep, config=config)
    with run.phase("report"):
        title = f"Attack: {attack_name(config)}"
        table = write_results(
            run,
            loaded.evaluation,
            loaded.groups,
            records,
            title=title,
            diagnostics=config.diagnostics.extent,
            share=config.diagnostics.share,
        )
    return worst_case_recall(table, loaded.groups[-1].entries[-1])
