"""`robustcli attack`: attack a data set with one attack, and keep every adversarial image and caption."""

from functools import partial
from urllib.parse import quote

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from robustcli.builders.models import build_surrogate, choose_device
from robustcli.engines.loading import load_subject
from robustcli.evaluation import Attacked, robust_recall
from robustcli.evaluation.bench import build_bench, judge_model
from robustcli.report.results import write_results
from robustcli.runs.run import Run
from robustcli.utils import files


def run(config: DictConfig, run: Run) -> float:
    """Attack with ``attack`` and write what came out to ``adversarial/``; returns the recall@1 that is left.

    The images are float32 (a byte or a JPEG would undo a small perturbation); the captions stand in
    ``records.parquet``.
    """
    device = choose_device(config.device, config.threads)
    with run.phase("load"):
        data, models, candidates = load_subject(config, {"model": config.checkpoint}, device)
        name = "-".join([str(HydraConfig.get().runtime.choices["attack"]), *filter(None, [config.attack.get("name")])])
        surrogate = build_surrogate(config, data, device)
        bench = build_bench(config, data, OmegaConf.create({name: config.attack}), candidates, name, surrogate)
    run.note(device=str(device))
    run.note_inputs(data={data.split: data.provenance()}, weights={"model": models["model"].fingerprint()})
    with run.phase("attack"):
        records = judge_model(run, bench, models["model"], "model", keep=partial(_write_images, run, name))
    with run.phase("report"):
        table = write_results(run, bench, models, records, title=f"Attack: {name}", diagnostics=config.diagnostics)
    return robust_recall(table, "model")


def _write_images(run: Run, wanted: str, attack: str, found: Attacked) -> None:
    """``adversarial/[variant/]images-<first row>.safetensors`` of each chunk."""
    if attack != wanted:  # the curve's
        return
    directory = run.directory / "adversarial" / quote(found.variant, safe=" ")
    with files.atomic(directory / f"images-{int(found.rows[0]):06d}.safetensors") as path:
        save_file({"images": found.images.contiguous(), "rows": found.rows.contiguous()}, path)
