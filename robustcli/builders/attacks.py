"""From a composed config to attacks: that of the run, and the judges, all within one budget.

An attack node has ``image`` and ``text``; a set of classes takes the image part alone, or a node without these parts.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeVar

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import (
    EOT,
    CandidateSource,
    ClassifierAttack,
    Gallery,
    ImageAttack,
    Pairs,
    RetrievalAttack,
    RetrievalEOT,
    RetrievalSurrogate,
    Surrogate,
    TextAttack,
    parse_eps,
)
from robustcli.attacks.core.threat import parse_number
from robustcli.utils.errors import UserError

Armed = TypeVar("Armed")
_SIDES = ("image", "text")
_ADAPTIVE = ("eot", "surrogate")  # of the attacker, not of one attack; see `adapted`
_BUDGET = {  # as conf/attack ships it
    ("image", "norm"): "linf",
    ("image", "eps"): "4/255",
    ("text", "max_words"): 1,
    ("text", "max_characters"): 2,
}


def build_attack(
    config: DictConfig, candidates: CandidateSource | None, *, seed: int, budget: Mapping[str, Any] | None = None
) -> RetrievalAttack:
    """The attack of ``config`` on a dual encoder.

    Args:
        budget: another attack's config, from which norm, eps and number of words are taken.

    Raises:
        UserError: an attack that only classifiers can be put to.
    """
    settings = _settings(config, budget)
    if not set(_SIDES) <= set(settings):
        raise UserError(
            f"{_name(settings)} attacks classifiers, but the data set has captions: choose an attack of both, "
            "such as attack=sga."
        )
    parts = {side: settings.pop(side) for side in _SIDES}
    image = instantiate(parts["image"], seed=seed) if parts["image"] else None
    if image is not None and not isinstance(image, ImageAttack):
        raise UserError(
            f"attack.image {type(image).__name__} needs a classifier, but the data set has captions: choose "
            "attack=retrieval_autoattack, or pgd, apgd or square for the images alone."
        )
    text = _text(parts["text"], candidates, seed=seed) if parts["text"] else None
    attack: RetrievalAttack = instantiate(settings, image=image, text=text, seed=seed)
    return attack


def build_classifier_attack(
    config: DictConfig, *, seed: int, budget: Mapping[str, Any] | None = None
) -> ClassifierAttack:
    """The attack of ``config`` on a classifier: its image part, or the whole where it has no parts.

    Raises:
        UserError: an attack that edits captions.
    """
    settings = _settings(config, budget)
    if settings.get("text") or not settings.get("image", True):
        raise UserError(
            f"{_name(settings)} edits captions, but the data set has classes: choose an attack of images alone, such "
            "as attack=pgd or attack=autoattack."
        )
    attack: ClassifierAttack = instantiate(settings.get("image", settings), seed=seed)
    return attack


def adapted(
    attack: Armed, config: DictConfig, surrogate: Any, gallery: Callable[[Pairs], Gallery] | None = None
) -> Armed:
    """``attack`` with what ``attack.eot`` and ``attack.surrogate`` say: averaged over draws, or computed on another
    model.

    Args:
        surrogate: that model; None: the one that is judged.
        gallery: of pairs, as the surrogate sees it.

    Raises:
        UserError: both at once, or draws that are none.
    """
    eot, wrapped = config.get("eot"), attack
    if eot is not None and surrogate is not None:
        raise UserError("attack.eot averages the judged model, which attack.surrogate never asks: give one of them.")
    if isinstance(attack, RetrievalAttack):
        if eot is not None:
            wrapped = RetrievalEOT(attack, **_draws(eot))  # type: ignore[assignment]
        elif surrogate is not None:
            wrapped = RetrievalSurrogate(attack, surrogate, gallery=gallery)  # type: ignore[assignment]
    elif isinstance(attack, ClassifierAttack):
        if eot is not None:
            wrapped = EOT(attack, **_draws(eot))  # type: ignore[assignment]
        elif surrogate is not None:
            wrapped = Surrogate(attack, surrogate)  # type: ignore[assignment]
    return wrapped


def _draws(eot: Any) -> dict[str, Any]:
    if isinstance(eot, DictConfig) and set(eot) <= {"draws", "chunk"}:
        return {str(key): value for key, value in eot.items()}
    if isinstance(eot, int):
        return {"draws": eot}
    raise UserError(f"attack.eot is {eot}: expected a number of draws, or '{{draws: 20, chunk: 256}}'.")


def build_judges(
    config: DictConfig, budget: Mapping[str, Any], build: Callable[..., Armed], *, seed: int
) -> dict[str, Armed]:
    """The attacks of ``judges=...`` by name, all within the budget of the run's own attack.

    A judge that attacks a side which the run's attack leaves alone, or characters where that attacks words, is outside
    of the budget, and left out.

    Args:
        build: makes an attack of a node; `build_attack` with its candidates, or `build_classifier_attack`.

    Raises:
        UserError: no judge is within the budget; one was given a budget of its own, or a step size too small for it.
    """
    within = {str(name): node for name, node in config.items() if not _beyond(node, budget)}
    if config and not within:
        raise UserError(
            f"none of the judges {', '.join(map(str, config))} attacks only what attack does: choose attack=mat, "
            "which allows images and captions, or judges=none."
        )
    for name, node in within.items():
        _check_judge(name, node, budget)
    return {name: build(node, seed=seed, budget=budget) for name, node in within.items()}


def _text(settings: Mapping[str, Any], candidates: CandidateSource | None, *, seed: int) -> TextAttack:
    """A search over words takes its candidates, one over characters needs none."""
    asked = "candidates" in signature(get_class(settings["_target_"])).parameters
    attack: TextAttack = instantiate(settings, seed=seed, **({"candidates": candidates} if asked else {}))
    return attack


def _settings(config: DictConfig, budget: Mapping[str, Any] | None) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for side, key in _BUDGET:
        if budget is not None and settings.get(side) and key in (budget.get(side) or ()):
            settings[side][key] = budget[side][key]
    return {key: value for key, value in settings.items() if key not in _ADAPTIVE}


def _name(settings: Mapping[str, Any]) -> str:
    return f"attack {str(settings.get('_target_')).rpartition('.')[2]}"


def _beyond(node: DictConfig, budget: Mapping[str, Any]) -> bool:
    text, other = node.get("text"), budget.get("text") or {}
    return any(node.get(side) and not budget.get(side) for side in _SIDES) or (
        bool(text) and ("max_characters" in text) != ("max_characters" in other)
    )


def _check_judge(name: str, node: DictConfig, budget: Mapping[str, Any]) -> None:
    for (side, key), shipped in _BUDGET.items():
        own = node[side].get(key, shipped) if node.get(side) else shipped
        if own not in (shipped, None, budget[side].get(key) if budget.get(side) else shipped):
            raise UserError(
                f"judges.{name}.{side}.{key} is {own}, but judges take the budget of attack: set attack.{side}.{key}."
            )
    image = node.get("image")
    if image and image.get("alpha") is not None:
        eps = parse_eps(budget["image"]["eps"], budget["image"]["norm"])
        if image.steps * parse_number("alpha", image.alpha) < eps:
            raise UserError(
                f"judges.{name}: {image.steps} steps of {image.alpha} cannot cross a ball of {budget['image']['eps']}: "
                f"set judges.{name}.image.alpha=null, which scales with eps."
            )
