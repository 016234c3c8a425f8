"""What every command that judges models does with them: attack, record, summarise, draw, report.

A model goes by its label, for example ``before`` and ``after``; an attack by its name among the judges.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import CandidateSource, ClassifierAttack, Gallery, Pairs, RetrievalAttack, parse_eps
from robustcli.attacks.core.threat import parse_number
from robustcli.builders.attacks import adapted, build_attack, build_classifier_attack, build_judges
from robustcli.data import ImageClassData, ImageTextData
from robustcli.evaluation import CLEAN, Attacked, ClassificationJudge, Judge, RetrievalJudge
from robustcli.evaluation.classification import at_eps, is_minimum_norm
from robustcli.report.markdown import threat_model
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Progress

CURVE = "curve-"
_POINTS = 10  # of a curve that is read off the norms that were found
_UNBOUNDED = "unbounded"  # the one run of a minimum-norm attack that is the whole curve
AnyAttack = RetrievalAttack | ClassifierAttack
Keep = Callable[[str, Attacked], None]


@dataclass(frozen=True)
class Bench:
    """Where models are judged.

    Attributes:
        judge: the images, with captions or classes.
        attacks: the judges by name, all within one budget.
        curve: for each eps of the curve of robust recall the attack that draws it, called ``curve_name``; None where
            another run holds the answer already: that of the judge itself at the budget, or that of ``unbounded``.
        unbounded: a minimum-norm attack without a radius, whose one run holds the whole curve.
        minimum_norm: ``curve_name`` is such an attack itself: what it found is the curve, at the norms that it found.
        budget: the budget in words.
        resamples, seed: of the intervals.
    """

    judge: Judge
    attacks: Mapping[str, AnyAttack]
    curve: Mapping[float, AnyAttack | None]
    unbounded: AnyAttack | None
    minimum_norm: bool
    curve_name: str
    budget: list[str]
    resamples: int
    seed: int


def build_bench(
    config: DictConfig,
    data: ImageTextData | ImageClassData,
    judges: DictConfig,
    candidates: CandidateSource | None,
    curve_attack: str | None,
    surrogate: Any = None,
) -> Bench:
    """The bench of a command: ``evaluation`` says on what, ``judges`` by what, ``attack`` within which budget.

    Args:
        candidates: where words come from; not read for a set of classes.
        surrogate: the model on which all attacks are computed; None: the one that is judged.
        curve_attack: name of the judge that draws the curve; None: ``sep``, or the last one where that is not there.
    """
    settings, budget = config.evaluation, config.attack
    make: Callable[..., AnyAttack]
    gallery: Callable[[Pairs], Gallery] | None = None
    if isinstance(data, ImageTextData):
        make, judge = partial(_retrieval_attack, candidates), _retrieval_judge(data, settings)
        gallery = partial(_gallery_of, _retrieval_judge(data, settings), surrogate) if surrogate is not None else None
    else:
        make = build_classifier_attack
        judge = ClassificationJudge(data, batch_size=settings.batch_size, limit=settings.limit)

    def build(node: DictConfig, **changed: Any) -> AnyAttack:
        return adapted(make(node, **changed), budget, surrogate, gallery)

    attacks: dict[str, AnyAttack] = build_judges(judges, budget, build, seed=config.seed)
    name = curve_attack or ("sep" if "sep" in attacks else next(reversed(attacks), ""))
    _check_curve(settings, judges, name)
    bounded = budget.get("image") is not None and budget.image.get("eps") is not None
    drawn = name in attacks and bounded
    curve, unbounded = _build_curve(config, judges[name], build) if drawn else ({}, None)
    return Bench(
        judge=judge,
        attacks=attacks,
        curve=curve,
        unbounded=unbounded,
        minimum_norm=name in attacks and is_minimum_norm(attacks[name]) and not bounded,
        curve_name=name,
        budget=_budget(budget, attacks, captions=isinstance(data, ImageTextData), surrogate=surrogate is not None),
        resamples=settings.resamples,
        seed=config.seed,
    )


def judge_model(run: Run, bench: Bench, model: Any, label: str, keep: Keep | None = None) -> pd.DataFrame:
    """Records of ``model`` clean, attacked and along the curve; what a killed run had judged is not judged again.

    Args:
        keep: is given the name of each attack and what it put out.
    """
    plan: dict[str, AnyAttack | None] = {CLEAN: None, **bench.attacks}
    plan |= {on_curve(eps): attack for eps, attack in bench.curve.items() if attack is not None}
    plan |= {_UNBOUNDED: bench.unbounded} if bench.unbounded is not None else {}
    model.eval()
    parts = {name: _judged(run, bench, model, label, name, attack, keep) for name, attack in plan.items()}
    for eps, attack in bench.curve.items():
        if attack is None:
            name = on_curve(eps)
            parts[name] = _read_off(parts, bench, eps).assign(attack=name)
    if bench.minimum_norm:
        parts |= {
            on_curve(eps): part.assign(attack=on_curve(eps)) for eps, part in _over_norms(parts[bench.curve_name])
        }
    return pd.concat([part for name, part in parts.items() if name != _UNBOUNDED], ignore_index=True)


def on_curve(eps: float) -> str:
    """What the records call the attack of the curve at ``eps``."""
    return f"{CURVE}{eps:.6f}"


def _read_off(parts: Mapping[str, pd.DataFrame], bench: Bench, eps: float) -> pd.DataFrame:
    """The records at ``eps`` from a run that was made anyway."""
    return at_eps(parts[_UNBOUNDED], eps) if _UNBOUNDED in parts else parts[bench.curve_name]


def _over_norms(found: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    """What is left at 0 and at the quantiles of the norms that were found, up to the largest."""
    norms = found.loc[found["status"] == "fooled", "norm"]
    quantiles = norms.quantile([point / _POINTS for point in range(_POINTS + 1)]) if len(norms) else norms
    for eps in sorted({0.0, *(math.ceil(1e6 * norm) / 1e6 for norm in quantiles)}):  # as many digits as in its name
        yield eps, at_eps(found, eps)


def _judged(
    run: Run, bench: Bench, model: Any, label: str, name: str, attack: AnyAttack | None, keep: Keep | None
) -> pd.DataFrame:
    kept = None if keep is None else partial(keep, name)
    with Progress(None if attack is None else len(bench.judge), f"{label}: {name}", unit="images") as progress:
        bench.judge.on_chunk = progress.advance
        return bench.judge.records(model, label, name, attack, keep=kept, part=_parts(run))


def _parts(run: Run) -> Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]:
    return lambda name, compute: run.records_part(name.replace(" ", "-"), compute)


def _retrieval_attack(candidates: CandidateSource | None, config: DictConfig, **settings: Any) -> RetrievalAttack:
    return build_attack(config, candidates, **settings)


def _retrieval_judge(data: ImageTextData, settings: DictConfig) -> Judge:
    return RetrievalJudge(data, batch_size=settings.batch_size, limit=settings.limit, attacker=settings.attacker)


def _gallery_of(judge: Judge, model: Any, pairs: Pairs) -> Gallery:
    """The whole gallery of the judge as ``model`` sees it, around ``pairs`` of it."""
    assert isinstance(judge, RetrievalJudge)
    return judge.pairs(model, pairs.image_ids)[1]


def _check_curve(settings: DictConfig, judges: DictConfig, name: str) -> None:
    if settings.eps_curve and judges and name not in judges:
        raise UserError(
            f"evaluation.curve_attack is {name!r}, but the judges are {', '.join(map(str, judges))}: "
            "choose one of them, or evaluation.eps_curve=[] for no curve."
        )


def _build_curve(
    config: DictConfig, judge: DictConfig, build: Callable[..., AnyAttack]
) -> tuple[dict[float, AnyAttack | None], AnyAttack | None]:
    """`Bench.curve` and `Bench.unbounded` of the config ``judge``: ``evaluation.eps_curve`` times the eps of
    ``attack``.
    """
    budget: Any = OmegaConf.to_container(config.attack, resolve=True)
    whole = parse_eps(budget["image"]["eps"], budget["image"]["norm"])

    def at(eps: float | None) -> AnyAttack:
        return build(judge, seed=config.seed, budget={**budget, "image": {**budget["image"], "eps": eps}})

    points = [whole * parse_number("eps_curve", factor) for factor in config.evaluation.eps_curve]
    if points and is_minimum_norm(at(whole)):
        return dict.fromkeys(points), at(None)
    return {eps: None if eps == whole else at(eps) for eps in points}, None


def _budget(attack: DictConfig, attacks: Mapping[str, AnyAttack], *, captions: bool, surrogate: bool) -> list[str]:
    image, text = attack.get("image"), attack.get("text")
    norm, eps = (image.get("norm"), image.get("eps")) if image else (None, None)
    first = next(iter(attacks.values()), None)
    if not captions and not image and isinstance(first, ClassifierAttack):  # of an attack that has a budget of its own
        norm, eps = first.norm, f"{first.budget.eps:.4g}" if first.budget is not None else None
    return threat_model(
        norm=norm,
        eps=eps,
        max_words=text.get("max_words") if text else None,
        max_characters=text.get("max_characters") if text else None,
        captions=captions,
        knows="a surrogate, and nothing of the judged model" if surrogate else "all weights",
    )
