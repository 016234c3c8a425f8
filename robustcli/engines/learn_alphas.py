"""`robustcli learn-alphas`: search for the alphas of a purifier, and their evaluation on a held-out split."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig

from robustcli.builders.attacks import build_threat
from robustcli.builders.data import build_classes
from robustcli.builders.defences import build_purified
from robustcli.builders.device import choose_device, on_device
from robustcli.builders.models import build_trained
from robustcli.config.unread import refuse_all_but
from robustcli.data import ImageClassData
from robustcli.defenses import PurifiedClassifier, Purifier
from robustcli.defenses.purification.alpha_images import AdversarialImages, attack_reconstruction
from robustcli.defenses.purification.alpha_search import AlphaEvaluator, AlphaSearch, Trial, as_row, check_objectives
from robustcli.engines.costs import tell_passes
from robustcli.engines.loading import print_notes
from robustcli.evaluation.timing import Timing, class_timing, seconds_of
from robustcli.report.alpha_results import LearnedAlphas, write_learned_alphas
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Progress
from robustcli.utils.seeding import derive_seed

_HELD_OUT = 8  # answers to an image of the held-out split: four schedules, adversarial and clean


def load(config: DictConfig) -> tuple[dict[str, ImageClassData], PurifiedClassifier, AlphaSearch]:
    """Data by split, the defence whose alphas are searched, and the search.

    Raises:
        UserError: equal splits, an unbounded or empty threat model, a purifier without alphas or with random
            preprocessing, or parts that do not fit together.
    """
    device = choose_device(config.device, config.threads)
    objectives = len(check_objectives(config.objectives))
    _check(config)
    splits = (config.adversarial.split, config.evaluation.split)
    sets = {split: build_classes(config.dataset, split) for split in splits}
    defence = _build_defence(config, sets[splits[0]], device)
    assert isinstance(defence.cleaner, Purifier)
    latents = len(defence.cleaner.generator.latent_shapes)
    return sets, defence, AlphaSearch(latents, objectives=objectives, sampler=config.sampler, seed=config.seed)


def run(config: DictConfig, run: Run) -> float:
    """Attack both splits, search on one and evaluate on the other; returns the learned alphas' accuracy on adversarial
    images of the held-out split.
    """
    with run.phase("load"):
        sets, defence, search = load(config)
    print_notes(sets)
    names, splits = check_objectives(config.objectives), (config.adversarial.split, config.evaluation.split)
    run.note(device=str(defence.classifier.device))
    run.note_inputs(
        data={split: data.provenance() for split, data in sets.items()}, weights={"defence": defence.fingerprint()}
    )
    with run.phase("load"):
        _tell_cost(run, config, defence, sets[splits[0]])
    with run.phase("attack"):
        adversarial = {split: _attacked(run, config, defence, data) for split, data in sets.items()}
    with run.phase("search"):
        evaluator = _evaluator(config, defence, "search")
        _search(
            run,
            config.trials,
            search,
            partial(_values, evaluator, sets[splits[0]], adversarial[splits[0]], names),
            names,
        )
    with run.phase("judge"):
        learned = search.trials[search.best()].alphas
        candidates: dict[str, Any] = {"reconstruction": "none", "linear": "linear", "cosine": "cosine"}
        records = _held_out(
            run,
            _evaluator(config, defence, "held out"),
            sets[splits[1]],
            adversarial[splits[1]],
            candidates | {"learned": learned},
        )
    with run.phase("report"):
        assert isinstance(defence.cleaner, Purifier)
        outcome = LearnedAlphas(
            search, names, adversarial, records, splits, defence.cleaner.attenuation, config.adversarial.images
        )
        return write_learned_alphas(run, outcome, resamples=config.evaluation.resamples, seed=config.seed)


def _check(config: DictConfig) -> None:
    why = "learn-alphas attacks by one FGSM step and counts right answers"
    refuse_all_but("evaluation", ("split", "limit", "batch_size", "resamples"), why)
    refuse_all_but("threat", ("norm", "eps"), why)
    if config.adversarial.split == config.evaluation.split:
        raise UserError(
            f"adversarial.split and evaluation.split are both {config.evaluation.split}: judge on another split than "
            "the search, or its figures would flatter."
        )
    if config.threat.at != "data":
        raise UserError("threat.at is model, but alphas are learned in front of the model: leave it out.")
    threat = build_threat(config.threat)
    if not threat.radius:
        raise UserError(f"threat.eps is {config.threat.eps}, with which no image fools anything: give one such as 1.0.")


def _tell_cost(run: Run, config: DictConfig, defence: PurifiedClassifier, data: ImageClassData) -> None:
    """Print the purified answers of search and evaluation, and their time; those of the one FGSM step are few."""
    images, answers = config.adversarial.images, config.trials * len(config.objectives) + _HELD_OUT
    threat, device = build_threat(config.threat), defence.device

    def timing(count: int) -> Timing:
        rows = torch.arange(count)
        return class_timing(defence, data.images(rows).to(device), data.labels[rows].to(device), threat)

    most = min(config.evaluation.batch_size, images, len(data))
    seconds = seconds_of(defence, timing, lambda timing: timing.forward(), most)
    said = f"{images:,} images x {answers:,} purified answers of {config.purifier.draws} draws"
    tell_passes(run, "search", said, images * answers, seconds)


def _build_defence(config: DictConfig, data: ImageClassData, device: torch.device) -> PurifiedClassifier:
    if "generator" not in config.purifier:
        raise UserError("learn-alphas needs a purifier that has alphas: take purifier=mlvgm.")
    classifier = on_device(build_trained(config.model, config.checkpoint, data, seed=config.seed), device, "model")
    defence = build_purified(config.purifier, data, device)(classifier)
    assert isinstance(defence, PurifiedClassifier) and isinstance(defence.cleaner, Purifier)
    if getattr(defence.cleaner.preprocess, "randomised", False):
        raise UserError(
            "purifier.preprocess draws noise, which would differ from trial to trial: learn the alphas with "
            "purifier.preprocess=none, as the paper does, and put the noise in front of what was learned."
        )
    return defence


def _attacked(run: Run, config: DictConfig, defence: PurifiedClassifier, data: ImageClassData) -> AdversarialImages:
    """Adversarial images of one split, computed once; a resumed run reads its file."""
    path = run.directory / "adversarial" / f"{data.split}.safetensors"
    if path.exists():
        return AdversarialImages.load(path)
    wanted = config.adversarial.images
    with Progress(None, f"attack {data.split}", unit="images") as progress:
        adversarial = attack_reconstruction(
            defence,
            data,
            build_threat(config.threat),
            count=wanted,
            batch_size=config.evaluation.batch_size,
            seed=config.seed,
            limit=config.evaluation.limit if data.split == config.evaluation.split else None,
            on_batch=lambda count: progress.advance(1, samples=config.evaluation.batch_size, fooled=count),
        )
    if not len(adversarial.rows):
        raise UserError(
            f"of the {adversarial.attacked} images of the split {data.split}, {adversarial.clean_correct} were right "
            f"before the attack and none wrong after it: raise threat.eps, which is {config.threat.eps}."
        )
    if len(adversarial.rows) < wanted:
        run.log.warning("%d adversarial images in %s, %d were asked for", len(adversarial.rows), data.split, wanted)
    adversarial.save(path)
    return adversarial


def _evaluator(config: DictConfig, defence: PurifiedClassifier, purpose: str) -> AlphaEvaluator:
    return AlphaEvaluator(
        defence,
        draws=config.purifier.draws,
        memory=config.purifier.memory,
        batch_size=config.evaluation.batch_size,
        seed=derive_seed(config.seed, "learn alphas", purpose),
    )


def _correct(
    evaluator: AlphaEvaluator,
    data: ImageClassData,
    adversarial: AdversarialImages,
    kind: str,
    alphas: Sequence[float] | str,
) -> torch.Tensor:
    """(N,) bool: which of the ``adversarial`` or ``clean`` images are classified right."""
    rows = adversarial.rows if kind == "adversarial" else adversarial.clean
    images = adversarial.images if kind == "adversarial" else data.images(rows)
    return evaluator.correct(alphas, images, data.labels[rows], rows)


def _values(
    evaluator: AlphaEvaluator,
    data: ImageClassData,
    adversarial: AdversarialImages,
    names: Sequence[str],
    alphas: Sequence[float],
) -> tuple[float, ...]:
    return tuple(float(_correct(evaluator, data, adversarial, name, alphas).double().mean()) for name in names)


def _search(run: Run, trials: int, search: AlphaSearch, values: Any, names: Sequence[str]) -> None:
    """Sequential search: propose alphas, evaluate them, report the values to the sampler.

    A trial purifies every image of its objectives in all draws; one that ended before a kill is read from its file.
    """
    with Progress(trials, "search", unit="trials") as progress:
        for number in range(trials):

            def compute() -> pd.DataFrame:
                origin, alphas = search.propose()
                return pd.DataFrame([as_row(Trial(origin, alphas, values(alphas)), names)])

            row = run.records_part(f"trial-{number:05d}", compute).iloc[0]
            alphas = tuple(float(row[f"alpha_{i}"]) for i in range(search.count))
            search.tell(Trial(str(row["origin"]), alphas, tuple(float(row[name]) for name in names)))
            progress.advance(1, samples=1, **{name: float(row[name]) for name in names})


def _held_out(
    run: Run,
    evaluator: AlphaEvaluator,
    data: ImageClassData,
    adversarial: AdversarialImages,
    candidates: dict[str, Any],
) -> pd.DataFrame:
    """Records of the held-out split: one row an image, kind of image and schedule."""
    parts = [
        run.records_part(f"held-out-{name}-{kind}", partial(_rows, evaluator, data, adversarial, kind, name, alphas))
        for name, alphas in candidates.items()
        for kind in ("adversarial", "clean")
    ]
    return pd.concat(parts, ignore_index=True)


def _rows(
    evaluator: AlphaEvaluator, data: ImageClassData, adversarial: AdversarialImages, kind: str, name: str, alphas: Any
) -> pd.DataFrame:
    rows = adversarial.rows if kind == "adversarial" else adversarial.clean
    return pd.DataFrame(
        {
            "alphas": name,
            "kind": kind,
            "image_id": [data.image_ids[i] for i in rows.tolist()],
            "label": [data.classes[i] for i in data.labels[rows].tolist()],
            "right": _correct(evaluator, data, adversarial, kind, alphas).numpy(),
        }
    )
