"""`robustcli attack`: one attack on a data set, with every adversarial image and caption written."""

from functools import partial
from urllib.parse import quote

from omegaconf import DictConfig
from safetensors.torch import save_file

from robustcli.engines.costs import judge_within
from robustcli.engines.loading import Loaded, NamedModel, attack_name, collect_records, load_models
from robustcli.evaluation import Attacked, AttackRun
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run
from robustcli.utils import files


def load(config: DictConfig) -> Loaded:
    """Data, model and evaluation by the one attack.

    Raises:
        UserError: see `load_models`.
    """
    return load_models(config, {"model": NamedModel(config.model, config.checkpoint)}, attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Attack with ``attack`` and write the adversarial images to ``adversarial/``; returns the worst-case recall@1.

    The images are float32 (a byte or a JPEG would undo a small perturbation); the captions stand in
    ``records.parquet``.
    """
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    cost, keep = judge_within(run, config, loaded.evaluation, loaded.groups), partial(_write_images, run, loaded)
    with run.phase("attack"):
        records = collect_records(run, loaded.evaluation, loaded.groups, cost, keep)
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


def _write_images(run: Run, loaded: Loaded, attack: AttackRun, attacked: Attacked) -> None:
    """``adversarial/[access/][variant/]images-<first row>.safetensors`` of each chunk, at the radius of the table."""
    if attack.threat.radius not in (None, loaded.evaluation.threat.radius):
        return
    access = [attack.access] if loaded.groups[0].defended else []
    parts = [*access, *([quote(attacked.variant, safe=" ")] if attacked.variant else [])]
    directory = run.directory.joinpath("adversarial", *parts)
    with files.atomic(directory / f"images-{int(attacked.rows[0]):06d}.safetensors") as path:
        save_file({"images": attacked.images.contiguous(), "rows": attacked.rows.contiguous()}, path)
