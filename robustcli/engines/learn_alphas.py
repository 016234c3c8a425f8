"""`robustcli learn-alphas`: alphas of a purifier, by a search or by what latents tell, judged on another split."""

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from omegaconf import DictConfig

from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.builders.attacks import build_threat
from robustcli.builders.data import build_classes
from robustcli.builders.defences import build_purified
from robustcli.builders.device import choose_device, on_device
from robustcli.builders.hook import construct
from robustcli.builders.models import build_trained
from robustcli.config.unread import refuse_all_but, refuse_unread
from robustcli.data import ImageClassData
from robustcli.defenses import InformativeAlphas, PurifiedClassifier, Purifier, SearchedAlphas
from robustcli.defenses.purification.alpha_images import AdversarialImages, attack_reconstruction, shuffled
from robustcli.defenses.purification.alpha_information import Information, latent_information
from robustcli.defenses.purification.alpha_search import AlphaEvaluator, AlphaSearch, Trial, as_row, check_objectives
from robustcli.defenses.purification.alpha_verdicts import ADAPTIVE, ADVERSARIAL, CLEAN, Verdicts
from robustcli.engines.costs import tell_passes
from robustcli.engines.loading import print_notes
from robustcli.evaluation.timing import Timing, class_timing, seconds_of
from robustcli.report.alpha_findings import Informed, Searched
from robustcli.report.alpha_results import LearnedAlphas, write_learned_alphas
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Progress
from robustcli.utils.seeding import derive_seed

Rule = SearchedAlphas | InformativeAlphas
_BESIDE: Mapping[str, str | Sequence[float]] = {"reconstruction": "none", "linear": "linear", "cosine": "cosine"}


def load(config: DictConfig) -> tuple[dict[str, ImageClassData], PurifiedClassifier, Rule]:
    """Data by split, the defence whose alphas are wanted, and the rule by which they are found.

    Raises:
        UserError: equal splits, an unbounded or empty threat model, a purifier without alphas or with random
            preprocessing, keys that the rule does not read, or parts that do not fit together.
    """
    device = choose_device(config.device, config.threads)
    rule: Rule = construct(config.alphas, node="alphas")
    _check(config, rule)
    splits = (config.adversarial.split, config.evaluation.split)
    sets = {split: build_classes(config.dataset, split) for split in splits}
    return sets, _build_defence(config, sets[splits[0]], device), rule


def run(config: DictConfig, run: Run) -> float:
    """Find alphas on one split and judge them on the other; returns their accuracy on attacked images of that one,
    attacked adaptively where the rule is about such an attacker.
    """
    with run.phase("load"):
        sets, defence, rule = load(config)
    print_notes(sets)
    found_on, judged_on = config.adversarial.split, config.evaluation.split
    kinds = (ADVERSARIAL, CLEAN, ADAPTIVE) if rule.adaptive else (ADVERSARIAL, CLEAN)
    run.note(device=str(defence.classifier.device))
    run.note_inputs(
        data={split: data.provenance() for split, data in sets.items()}, weights={"defence": defence.fingerprint()}
    )
    with run.phase("load"):
        _tell_cost(run, config, rule, defence, sets[found_on], kinds)
    with run.phase("attack"):
        needed = [split for split in sets if split == judged_on or not rule.adaptive]
        made = {split: _attacked(run, config, defence, sets[split]) for split in needed}
    found: Searched | Informed
    with run.phase("search"):
        if isinstance(rule, SearchedAlphas):
            verdicts = _verdicts(config, rule, defence, sets[found_on], made.get(found_on), "search")
            found = _searched(run, config, verdicts, _objectives(config, rule))
        else:
            found = Informed(_information(run, config, rule, defence, sets[found_on]), found_on, rule.given)
    with run.phase("judge"):
        verdicts = _verdicts(config, rule, defence, sets[judged_on], made[judged_on], "held out")
        records = [
            run.records_part(f"held-out-{name}-{kind}", partial(verdicts.records, kind, name, alphas))
            for name, alphas in ({**_BESIDE, "learned": found.alphas}).items()
            for kind in kinds
        ]
    with run.phase("report"):
        assert isinstance(defence.cleaner, Purifier)
        outcome = LearnedAlphas(
            found=found,
            made=made,
            records=pd.concat(records, ignore_index=True),
            split=judged_on,
            attenuation=defence.cleaner.attenuation,
            wanted=config.adversarial.images,
        )
        return write_learned_alphas(run, outcome, resamples=config.evaluation.resamples, seed=config.seed)


def _check(config: DictConfig, rule: Rule) -> None:
    why = "learn-alphas has attacks of its own and counts right answers"
    refuse_all_but("evaluation", ("split", "limit", "batch_size", "resamples"), why)
    refuse_all_but("threat", ("norm", "eps"), why)
    if not rule.adaptive:
        refuse_all_but("alphas", ("against",), "the images are made once, before the search (alphas.against=static)")
    if isinstance(rule, SearchedAlphas):
        _objectives(config, rule)
        AlphaSearch(1, sampler=config.sampler)
    else:
        for key in ("trials", "sampler", "objectives"):
            refuse_unread(key, "nothing is searched with alphas=mutual_information")
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


def _objectives(config: DictConfig, rule: SearchedAlphas) -> tuple[str, ...]:
    """The kinds of images whose accuracies are maximised; that of ``adversarial`` is the attacker of the rule."""
    default = (ADVERSARIAL, CLEAN) if rule.adaptive else (ADVERSARIAL,)
    names = check_objectives(default if config.objectives is None else config.objectives)
    return tuple(ADAPTIVE if rule.adaptive and name == ADVERSARIAL else name for name in names)


def _tell_cost(
    run: Run, config: DictConfig, rule: Rule, defence: PurifiedClassifier, data: ImageClassData, kinds: Sequence[str]
) -> None:
    """Print the passes of search and verdict, and their time; those of the one FGSM step are few."""
    threat, device, attack = build_threat(config.threat), defence.device, rule.attack(config.seed)
    spent = attack.passes(Problem(classes=len(data.classes), norm=threat.norm, randomised=True))
    assert spent is not None
    judged = [kind for _ in (*_BESIDE, "learned") for kind in kinds]
    if isinstance(rule, SearchedAlphas):
        judged += config.trials * list(_objectives(config, rule))
    images, each = config.adversarial.images, Passes()
    for kind in judged:
        # An adaptive verdict: the search, and the two passes around it by which an attack judges its own result.
        each = each + (spent + forward(3) if kind == ADAPTIVE else forward(1))
    drawn = _evaluator(config, defence, "timing").defence("linear")

    def timing(count: int) -> Timing:
        rows = torch.arange(count)
        return class_timing(drawn, data.images(rows).to(device), data.labels[rows].to(device), threat)

    most = min(config.evaluation.batch_size, images, len(data))
    seconds = (each.forward - each.backward) * seconds_of(drawn, timing, lambda timing: timing.forward(), most)
    if each.backward:
        seconds += each.backward * seconds_of(drawn, timing, lambda timing: timing.gradient(), most)
    said = f"{images:,} images x {len(judged):,} verdicts by answers of {config.purifier.draws} draws"
    tell_passes(run, "search", said, each * images, images * seconds)


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
            limit=_limit(config, data),
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


def _limit(config: DictConfig, data: ImageClassData) -> int | None:
    limit: int | None = config.evaluation.limit if data.split == config.evaluation.split else None
    return limit


def _evaluator(config: DictConfig, defence: PurifiedClassifier, purpose: str) -> AlphaEvaluator:
    return AlphaEvaluator(
        defence,
        draws=config.purifier.draws,
        memory=config.purifier.memory,
        batch_size=config.evaluation.batch_size,
        seed=derive_seed(config.seed, "learn alphas", purpose),
    )


def _verdicts(
    config: DictConfig,
    rule: Rule,
    defence: PurifiedClassifier,
    data: ImageClassData,
    made: AdversarialImages | None,
    purpose: str,
) -> Verdicts:
    return Verdicts(
        evaluator=_evaluator(config, defence, purpose),
        data=data,
        clean=shuffled(data, config.seed, _limit(config, data))[: config.adversarial.images],
        made=made,
        attack=rule.attack(config.seed),
        threat=build_threat(config.threat),
    )


def _searched(run: Run, config: DictConfig, verdicts: Verdicts, names: tuple[str, ...]) -> Searched:
    """Sequential search: propose alphas, evaluate them, report the values to the sampler.

    A trial purifies every image of its objectives in all draws; one that ended before a kill is read from its file.
    """
    latents = len(verdicts.evaluator.cleaner.generator.latent_shapes)
    search = AlphaSearch(latents, objectives=len(names), sampler=config.sampler, seed=config.seed)
    with Progress(config.trials, "search", unit="trials") as progress:
        for number in range(config.trials):

            def compute() -> pd.DataFrame:
                origin, alphas = search.propose()
                values = tuple(verdicts.accuracy(name, alphas) for name in names)
                return pd.DataFrame([as_row(Trial(origin, alphas, values), names)])

            row = run.records_part(f"trial-{number:05d}", compute).iloc[0]
            alphas = tuple(float(row[f"alpha_{i}"]) for i in range(search.count))
            search.tell(Trial(str(row["origin"]), alphas, tuple(float(row[name]) for name in names)))
            progress.advance(1, samples=1, **{name: float(row[name]) for name in names})
    counts = {name: len(verdicts.rows(name)) for name in names}
    return Searched(search, names, counts, verdicts.data.split)


def _information(
    run: Run, config: DictConfig, rule: InformativeAlphas, defence: PurifiedClassifier, data: ImageClassData
) -> Information:
    """What each latent of the generator tells of the class; a resumed run reads its file."""
    assert isinstance(defence.cleaner, Purifier)
    cleaner, rows = defence.cleaner, shuffled(data, config.seed)[: rule.images]

    def compute() -> pd.DataFrame:
        parts = []
        with torch.no_grad():
            for part in torch.split(rows, config.evaluation.batch_size):
                parts.append([each.cpu() for each in cleaner.latents(data.images(part).to(defence.device))])
        latents = [torch.cat(of_batches) for of_batches in zip(*parts, strict=True)]
        with Progress(len(latents), "probe", unit="latents") as progress:
            found = latent_information(
                latents,
                data.labels[rows],
                folds=rule.folds,
                components=rule.components,
                seed=config.seed,
                given=rule.given,
                on_latent=lambda mean: progress.advance(1, samples=1, nats=mean),
            )
        return found.table()

    return Information.of(run.records_part("information", compute))
