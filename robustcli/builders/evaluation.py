"""Builders of evaluations: the suite of attacks, the threat model and the attacker's access, from a composed config."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from robustcli.attacks import Gallery, Pairs, ThreatModel
from robustcli.builders.attacks import (
    BuiltAttack,
    Candidates,
    build_attack,
    build_suite,
    check_reach,
    check_unit,
    threat_on,
)
from robustcli.builders.names import refuse_reserved
from robustcli.config.unread import refuse_all_but, refuse_unread
from robustcli.data import ImageClassData, ImageTextData, Sentences
from robustcli.evaluation import (
    ACCESS,
    SHORTENED,
    Attacker,
    ClassificationEvaluator,
    Evaluation,
    Evaluator,
    RetrievalEvaluator,
    SentenceEvaluator,
)
from robustcli.evaluation.smoothing import Smoothing
from robustcli.models.network import resizing
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.suggest import did_you_mean

_DRAWS = {"draws", "chunk"}


def build_evaluation(
    config: DictConfig,
    data: ImageTextData | ImageClassData,
    attacks: Mapping[str, BuiltAttack],
    *,
    models: Sequence[Any] = (),
    surrogate: Any = None,
    defended: bool = False,
) -> Evaluation:
    """The evaluation of a command: evaluator, suite, threat model, radii of the curve and attacker.

    Args:
        attacks: of `build_attacks`.
        models: to evaluate; none: that of a training.
        surrogate: the model on which all attacks are computed; None: the evaluated model itself.
        defended: True if a test-time defence stands in front of the models.

    Raises:
        UserError: an ``evaluation.curve_attack`` outside of the suite, an unknown access, a number of EOT draws below
            1, an unbounded threat model for a defence, or an override that the evaluation would not read.
    """
    settings, threat = config.evaluation, threat_on(config.threat, data, attacked=bool(attacks))
    if isinstance(data, ImageClassData):
        # Read by nothing without captions: to take them in silence would make a threat model look wider than it is.
        for name in ("words", "characters", "edits"):
            refuse_unread(f"threat.{name}", f"the data set {data.name} has classes and no captions")
    _refuse_unread(config, threat, attacks, defended=defended)
    suite = {name: built.attack for name, built in attacks.items()}
    radii, curve = _radii(settings, threat, defended=defended), _curve(settings, suite)
    at_model = _at_model(config, data, [*models, *([] if surrogate is None else [surrogate])], defended=defended)
    evaluator = _evaluator(config, data, threat, radii, at_model=at_model)
    gallery = None
    if surrogate is not None and isinstance(evaluator, RetrievalEvaluator | SentenceEvaluator):
        gallery = _gallery_of(evaluator, surrogate)
    draws, chunk = _draws(settings.eot)
    if surrogate is not None:
        refuse_unread("evaluation.access", "an attack on evaluation.surrogate has access to no other model")
        refuse_unread("evaluation.eot", "it averages the judged model, which evaluation.surrogate never asks")
    if defended and threat.radius is None:
        raise UserError(
            "threat.eps is null, but a table of defences stands at a radius: give it, such as threat.eps=1.0; the "
            "smallest changes are looked for anyway where an attack does so."
        )
    evaluation = Evaluation(
        evaluator=evaluator,
        attacks=suite,
        threat=threat,
        radii=radii,
        curve=curve,
        attacker=Attacker(
            access=_access(settings, defended=defended), eot=draws, chunk=chunk, surrogate=surrogate, gallery=gallery
        ),
        keys={name: built.keys for name, built in attacks.items()},
        resamples=settings.resamples,
        seed=config.seed,
    )
    for name, built in attacks.items():
        check_reach(built, evaluation.threats(name))
    return evaluation


def _refuse_unread(
    config: DictConfig, threat: ThreatModel, attacks: Mapping[str, BuiltAttack], *, defended: bool
) -> None:
    """A `UserError` for an override that has no bearing on what is asked for."""
    settings = config.evaluation
    if not threat.moves_images:
        refuse_unread("threat.at", "threat.eps is 0, with which images stay as they are")
    if not defended:
        refuse_unread("evaluation.draws", "it counts the draws of a purifier, and none stands in front of the model")
    if not attacks:
        unread = ["curve_attack", "eot", "access", "surrogate", *(["eps_curve"] if settings.eps_curve else [])]
        for name in (*(f"evaluation.{each}" for each in unread), *(["transfer"] if config.get("transfer") else [])):
            refuse_unread(name, "no attack is run: choose attacks=... or attack=...")
        if config.diagnostics.extent != "off":
            refuse_unread("diagnostics", "no attack is run, and diagnostics are of robust figures")
    if (extent := config.diagnostics.extent) != "auto":
        why = f"diagnostics={extent} runs {'none' if extent == 'off' else 'every check'}"
        refuse_unread("diagnostics.share", why)
    if settings.eps_curve and not (threat.moves_images and threat.radius):
        refuse_unread("evaluation.eps_curve", f"its radii are multiples of threat.eps, which is {config.threat.eps}")
    if not settings.eps_curve and threat.radius is not None and not config.get("transfer"):
        refuse_unread("evaluation.curve_attack", "evaluation.eps_curve is [], so that no curve is drawn")


def build_smoothing(config: DictConfig) -> Smoothing | None:
    """The certificate of ``certify``, None where its sigma is null.

    Raises:
        UserError: a threat model in another norm than L2, in which the certificate is, or keys without a sigma.
    """
    settings: Any = OmegaConf.to_container(config.certify, resolve=True)
    settings.pop("defences")
    if settings["sigma"] is None:
        refuse_all_but("certify", ["sigma"], "certify.sigma is null, which certifies nothing")
        return None
    if config.threat.norm != "l2":
        raise UserError(
            f"certify.sigma is {settings['sigma']}, but randomised smoothing proves an L2 norm, and threat.norm is "
            f"{config.threat.norm}: set threat=l2, or leave certify.sigma out."
        )
    return Smoothing(**settings)


def build_attacks(
    config: DictConfig,
    data: ImageTextData | ImageClassData,
    candidates: Candidates | None,
    *,
    name: str | None = None,
    another: str = "+attack@attacks.{0}={0}",
) -> dict[str, BuiltAttack]:
    """The suite of ``attacks=...`` and, under ``name``, the attack of ``attack=...``.

    Args:
        candidates: source of word substitutions; None for a data set without captions.
        name: of the attack of ``attack=...`` in tables; None: there is none, or it is the one of the training.
        another: see `ConfigKeys`.

    Raises:
        UserError: see `check_unit`, `build_suite` and `build_attack`.
    """
    nodes = {f"attacks.{each}": node for each, node in config.get("attacks", {}).items()}
    attacked, captions = bool(nodes) or name is not None, isinstance(data, ImageTextData)
    threat = threat_on(config.threat, data, attacked=attacked)
    settings: Any = {"captions": captions, "candidates": candidates, "seed": config.seed}
    check_unit(nodes if name is None else {**nodes, "attack": config.attack}, threat, data)
    suite = build_suite(config.attacks, threat, **settings) if "attacks" in config else {}
    if name is not None:
        refuse_reserved("an attack", [name], "all")
        single = build_attack(config.attack, threat, **settings, key="attack")
        if name in suite and suite[name].attack != single.attack:
            raise UserError(
                f"attack={name} has the name of an attack of the suite, but other settings: leave that one out with "
                f"~attacks.{name}, or run attack={name} alone with attacks=none."
            )
        suite[name] = single
    return {each: replace(built, keys=replace(built.keys, another=another)) for each, built in suite.items()}


def _at_model(
    config: DictConfig, data: ImageTextData | ImageClassData, models: Sequence[Any], *, defended: bool
) -> bool:
    """True where the perturbation stands at the input of models that resize images.

    Raises:
        UserError: ``threat.at=model`` for a training, behind a purifier, or with models of several input sizes.
    """
    if config.threat.at == "data" or isinstance(data, Sentences):
        return False
    if not models:
        raise UserError(
            "threat.at is model, but a training moves pixels of the data set: leave it out, and judge what was trained "
            "by `robustcli evaluate threat.at=model`."
        )
    height, width = data.images(torch.zeros(1, dtype=torch.long)).shape[-2:]
    if not any(resizing(height, width, model.image_size) for model in models):
        return False
    sizes = sorted({model.image_size or max(height, width) for model in models})
    if len(sizes) > 1:
        raise UserError(
            f"threat.at is model, but the models take images of {' and '.join(map(str, sizes))} pixels, at which an "
            "eps means another change: judge each in a run of its own, or take threat.at=data."
        )
    if defended:
        raise UserError(
            f"threat.at is model, but a purifier stands in front of it and cleans the images of {data.name}, {height} "
            f"x {width} pixels, not those of {sizes[0]}: take threat.at=data."
        )
    return True


def _evaluator(
    config: DictConfig,
    data: ImageTextData | ImageClassData,
    threat: ThreatModel,
    radii: tuple[float, ...],
    *,
    at_model: bool,
) -> Evaluator:
    settings = config.evaluation
    fresh = at_least("fresh", settings.fresh, 1, node="evaluation")
    common: dict[str, Any] = {"batch_size": settings.batch_size, "limit": settings.limit, "fresh": fresh}
    common |= {"seed": config.seed, "at_model": at_model}
    if isinstance(data, Sentences):
        return SentenceEvaluator(data, threat, **common)
    if isinstance(data, ImageTextData):
        return RetrievalEvaluator(data, threat, **common)
    return ClassificationEvaluator(data, threat, **common, radii=radii)


def _radii(settings: DictConfig, threat: ThreatModel, *, defended: bool) -> tuple[float, ...]:
    """``evaluation.eps_curve`` times the eps of the threat model, ascending; for a defence the eps itself too, to which
    minimum-norm perturbations are extended.
    """
    if not isinstance(settings.eps_curve, ListConfig):
        raise UserError(f"evaluation.eps_curve is {settings.eps_curve!r}: give a list, such as [0, 0.5, 1, 2].")
    factors = [parse_number("eps_curve", factor, node="evaluation") for factor in settings.eps_curve]
    if threat.radius is None or not threat.moves_images:
        return ()
    table_radius = {threat.radius} if defended else set()
    return tuple(sorted({*table_radius, *(threat.radius * factor for factor in factors)}))


def _curve(settings: DictConfig, suite: Mapping[str, Any]) -> str | None:
    """Name of the attack that draws the curve; None: all of them."""
    asked = settings.curve_attack
    if asked == "all":
        return None
    if asked is not None and asked not in suite and settings.eps_curve and suite:
        raise UserError(
            f"evaluation.curve_attack is {asked!r}{did_you_mean(asked, list(suite))}: the attacks are "
            f"{', '.join(suite)}; choose one of them, all, or evaluation.eps_curve=[] for no curve."
        )
    return asked or ("sep" if "sep" in suite else next(reversed(list(suite)), ""))


def _access(settings: DictConfig, *, defended: bool) -> tuple[str, ...]:
    asked = settings.access
    if asked is None:
        return ACCESS
    if not isinstance(asked, ListConfig):
        raise UserError(f"evaluation.access is {asked!r}: give a list, such as [static,bpda,adaptive].")
    access = tuple(str(each) for each in asked)
    if unknown := [each for each in access if each not in (*ACCESS, SHORTENED)]:
        raise UserError(f"evaluation.access has {unknown[0]!r}: choose of {', '.join((*ACCESS, SHORTENED))}.")
    if not defended and access != ("adaptive",):
        raise UserError(
            f"evaluation.access is {list(access)}, but nothing stands in front of the model, so that an attacker sees "
            "all of it: leave it out, or choose purifier=... ."
        )
    return access


def _draws(eot: Any) -> tuple[int, int | None]:
    """EOT draws of a gradient, and the largest number of images in one pass (None: all at once)."""
    if isinstance(eot, DictConfig) and set(eot) <= _DRAWS:
        settings: Any = OmegaConf.to_container(eot, resolve=True)
        return at_least("draws", settings.get("draws", 1), 1, node="evaluation.eot"), settings.get("chunk")
    if isinstance(eot, bool) or not isinstance(eot, int) or eot < 1:
        raise UserError(f"evaluation.eot is {eot}: expected a number of draws, or '{{draws: 20, chunk: 256}}'.")
    return eot, None


def _gallery_of(evaluator: RetrievalEvaluator | SentenceEvaluator, model: Any) -> Any:
    """Function from pairs to the evaluator's whole gallery, encoded by ``model``.

    The embeddings of two models share no space, so a surrogate ranks against a gallery of its own.
    """

    def gallery(pairs: Pairs) -> Gallery:
        return evaluator.pairs(model, pairs.image_ids)[1]

    return gallery
