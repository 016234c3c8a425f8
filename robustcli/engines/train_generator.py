"""`robustcli train-generator`: train a generator of images for purification, and show what its latents say."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustcli.attacks.core.threat import parse_number
from robustcli.builders.models import build_classes, build_evidence, build_generator, choose_device
from robustcli.data import ImageClassData
from robustcli.data.augmentation import Augmentation
from robustcli.evaluation.generation import GenerationJudge
from robustcli.models.generators import NVAE, load_nvae, moments_at, save_nvae
from robustcli.report.generation import write_generation
from robustcli.runs.run import Run
from robustcli.training.history import train, write_course
from robustcli.training.tasks import GeneratorTask
from robustcli.training.trainer import Trainer, TrainerSettings
from robustcli.utils.errors import UserError


def run(config: DictConfig, run: Run) -> float:
    """Train as ``config`` says; returns the bits per dimension on the split that is judged."""
    device = choose_device(config.trainer.device, config.trainer.threads)
    with run.phase("load"):
        temperatures = _temperatures(config)
        sets = {split: build_classes(config.dataset, split) for split in ("train", "val", config.evaluation.split)}
        model = build_generator(config.generator, config.checkpoint, sets["train"], seed=config.seed).to(device)
        trainer = _build_trainer(config, run, model, sets["train"], sets["val"])
    run.note(device=str(device))
    run.note_inputs(
        data={split: data.provenance() for split, data in sets.items()}, weights={"before": model.fingerprint()}
    )
    with run.phase("train"):
        training = train(trainer, run, "images")
    saved = run.checkpoint_path("last")
    with run.phase("moments"):
        _save(config, model, temperatures, saved)
    model = load_nvae(saved, temperature=model.temperature).to(device)  # what is judged is what others will load
    run.note(weights={"after": model.fingerprint()})
    judge = _judge(config, sets[config.evaluation.split])
    with run.phase("judge"):
        records = run.records_part("records", lambda: judge.records(model))
    with run.phase("report"):
        figures = write_generation(run, judge, model, records, write_course(run, training))
    return figures["bits_per_dim"]


def _temperatures(config: DictConfig) -> list[float]:
    """Those that moments are estimated again for; where there are any, the generator's own must be among them."""
    values = [parse_number("temperatures", value, node="moments") for value in config.moments.temperatures]
    if values and float(config.generator.temperature) not in values:
        raise UserError(
            f"generator.temperature is {config.generator.temperature}, which moments.temperatures {values} lacks: add "
            "it, or give [] to use the moments of the training at every temperature."
        )
    return values


def _save(config: DictConfig, model: NVAE, temperatures: list[float], path: Any) -> None:
    settings = {"batches": config.moments.batches, "batch_size": config.moments.batch_size, "seed": config.seed}
    at = {temperature: moments_at(model, temperature, **settings) for temperature in temperatures}
    save_nvae(model, path, at=at, half=config.half)


def _build_trainer(config: DictConfig, run: Run, model: NVAE, images: ImageClassData, val: ImageClassData) -> Trainer:
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    augmentation: Any = OmegaConf.to_container(config.augmentation, resolve=True)
    task = GeneratorTask(
        images,
        build_evidence(config.objective),
        Augmentation(**augmentation),
        batch_size=config.trainer.batch_size,
        seed=config.seed,
    )
    judge = _judge(config, val)
    return Trainer(
        model,
        task,
        TrainerSettings(**settings),
        seed=config.seed,
        state=run.directory / "parts" / "state.pt",  # removed with the other parts once the run is done
        validate=lambda trained: _validated(judge, trained),
    )


def _judge(config: DictConfig, data: ImageClassData) -> GenerationJudge:
    return GenerationJudge(
        data, batch_size=config.evaluation.batch_size, limit=config.evaluation.limit, seed=config.seed
    )


def _validated(judge: GenerationJudge, model: NVAE) -> dict[str, float]:
    figures = judge.figures(judge.records(model))
    return {key: figures[key] for key in ("bits_per_dim", "likelihood_bits", "mse")}
