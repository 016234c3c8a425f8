"""`robustcli attack`: attack a data set with one attack, and keep every adversarial pair."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from robustcli import files
from robustcli.building import build_candidates, build_data, build_model, choose_device
from robustcli.evaluation import build_bench, judge_model, robust_recall, write_results
from robustcli.judging import Attacked
from robustcli.run import Run

_SHARD = 1024  # images a file: 600 MB at 224 pixels


def run(config: DictConfig, run: Run) -> float:
    """Attack with ``attack`` and write what came out to ``adversarial/``; returns the recall@1 that is left.

    The images are float32 (a byte or a JPEG would undo a small perturbation); the captions stand in
    ``records.parquet``.
    """
    device = choose_device(config.device, config.threads)
    with run.phase("load"):
        data = build_data(config.dataset, config.evaluation.split)
        model = build_model(config.model, config.checkpoint, data, seed=config.seed).to(device)
        name = str(HydraConfig.get().runtime.choices["attack"])
        alone = OmegaConf.create({name: config.attack})
        bench = build_bench(config, data, alone, build_candidates(config.candidates, data, model), name)
    run.note(device=str(device))
    run.note_inputs(
        data={data.split: data.provenance()},
        weights={"model": model.fingerprint()},
    )
    with run.phase("attack"):
        records = judge_model(
            run, bench, model, "model", keep=lambda attack, found: _write_images(run, attack, found, name)
        )
    with run.phase("report"):
        table = write_results(run, bench, {"model": model}, records, title=f"Attack: {name}")
    return robust_recall(table, "model")


def _write_images(run: Run, attack: str, found: Attacked, wanted: str) -> None:
    if attack != wanted:  # the curve's
        return
    for start in range(0, len(found.images), _SHARD):
        with files.atomic(run.directory / "adversarial" / f"images-{start:06d}.safetensors") as path:
            save_file({"images": found.images[start : start + _SHARD].contiguous()}, path)
