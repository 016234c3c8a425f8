"""`robustcli attack`: attack a data set with one attack, and keep every adversarial image and caption."""

from functools import partial
from urllib.parse import quote

from omegaconf import DictConfig
from safetensors.torch import save_file

from robustcli.engines.loading import Loaded, attack_name, collect_records, load_models
from robustcli.evaluation import Attacked, AttackRun
from robustcli.report.results import worst_case_recall, write_results
from robustcli.runs.run import Run
from robustcli.utils import files


def load(config: DictConfig) -> Loaded:
    """Data, the model, and what attacks it; raises UserError where they do not fit."""
    return load_models(config, {"model": config.checkpoint}, attack=attack_name(config))


def run(config: DictConfig, run: Run) -> float:
    """Attack with ``attack`` and write what came out to ``adversarial/``; returns the recall@1 that is left.

    The images are float32 (a byte or a JPEG would undo a small perturbation); the captions stand in
    ``records.parquet``.
    """
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    with run.phase("attack"):
        records = collect_records(run, loaded.evaluation, loaded.groups, keep=partial(_write_images, run, loaded))
    with run.phase("report"):
        title = f"Attack: {attack_name(config)}"
        table = write_results(
            run, loaded.evaluation, loaded.groups, records, title=title, diagnostics=config.diagnostics
        )
    return worst_case_recall(table, loaded.groups[-1].entries[-1])


def _write_images(run: Run, loaded: Loaded, attack: AttackRun, found: Attacked) -> None:
    """``adversarial/[access/][variant/]images-<first row>.safetensors`` of each chunk, at the radius of the table."""
    if attack.threat.radius not in (None, loaded.evaluation.threat.radius):
        return
    access = [attack.access] if loaded.groups[0].defended else []
    parts = [*access, *([quote(found.variant, safe=" ")] if found.variant else [])]
    directory = run.directory.joinpath("adversarial", *parts)
    with files.atomic(directory / f"images-{int(found.rows[0]):06d}.safetensors") as path:
        save_file({"images": found.images.contiguous(), "rows": found.rows.contiguous()}, path)
