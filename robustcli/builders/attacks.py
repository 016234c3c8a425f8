"""Builders of threat models and attacks, from config nodes.

The perturbation budget is the threat model's, which stands in the config once and is given with the call; a node of an
attack holds the settings of its search alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import (
    PGD,
    Attack,
    CandidateSource,
    ClassifierAttack,
    ImageAttack,
    RetrievalAttack,
    SepAttack,
    TextAttack,
    ThreatModel,
    TorchAttack,
)
from robustcli.builders.hook import construct
from robustcli.builders.names import refuse_reserved
from robustcli.config.overrides import BUDGETS
from robustcli.config.unread import refuse_unread
from robustcli.data import ImageClassData, ImageTextData, Sentences
from robustcli.diagnostics import ConfigKeys
from robustcli.utils.errors import UserError

Candidates = Callable[[], CandidateSource]  # made where an attack first asks for words
_SIDES = ("image", "text")


@dataclass(frozen=True)
class BuiltAttack:
    """An attack and the config keys of its settings.

    Attributes:
        attack: a `RetrievalAttack` for captions, a `ClassifierAttack` for classes.
        keys: see `ConfigKeys`.
    """

    attack: Attack
    keys: ConfigKeys


def build_threat(config: DictConfig) -> ThreatModel:
    """The threat model of ``threat=...``.

    Raises:
        UserError: a value out of its range, or an unknown ``norm`` or ``edits``.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    settings.pop("at", None)  # a property of the evaluation: the same ball, around images of another size
    return ThreatModel(**settings)


def threat_on(config: DictConfig, data: ImageTextData | ImageClassData, *, attacked: bool) -> ThreatModel:
    """`build_threat` as it is on ``data``: of sentences the attacker edits the query, and their classes stay.

    Args:
        attacked: whether any attack is run.

    Raises:
        UserError: an attack on images where the data set has none.
    """
    threat = build_threat(config)
    if not isinstance(data, Sentences):
        return threat
    refuse_unread("threat.edits", f"the sentences of the data set {data.name} are edited, which are the queries")
    if threat.moves_images and attacked:
        raise UserError(
            f"threat.eps is {config.eps}, but the data set {data.name} has sentences and no image to change: choose "
            "threat=text for words, or threat=characters."
        )
    return replace(threat, eps=0.0, edits="query")


def build_attack(
    config: DictConfig, threat: ThreatModel, *, captions: bool, candidates: Candidates | None, seed: int, key: str
) -> BuiltAttack:
    """The attack of the node at ``key``, for a data set of captions or of classes.

    For captions a search over images alone, or over texts alone, becomes an attack on pairs that leaves the other
    side clean.

    Args:
        candidates: source of word substitutions, called where a text attack of the node names none of its own.
        seed: of the run; every sample's generator is derived from it.
        key: dotted config key of the node, for messages.

    Raises:
        UserError: a target that is no attack, a search that does not fit the kind of data set, one that cannot serve
            the threat model, or a node with a budget of its own.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    sides = {side: settings.pop(side) for side in _SIDES if isinstance(settings.get(side), Mapping)}
    for place, node in ((key, settings), *((f"{key}.{side}", node) for side, node in sides.items())):
        _refuse_budget(node, place)
    parts = {side: _search(node, candidates, f"{key}.{side}", seed=seed) for side, node in sides.items()}
    attack = _search(settings, candidates, key, seed=seed, **parts)
    keys = {side: f"{key}.{side}" if side in sides else key for side in _SIDES}
    fitted = _for_captions(attack, key) if captions else _for_classes(attack, key)
    if isinstance(fitted, RetrievalAttack):
        refuse_unread(f"{keys['image']}.early_stop", "against pairs no image leaves the search early")
        for setting in fitted.replaced:
            refuse_unread(f"{key}.{setting}", f"{type(fitted).__name__} has a loss of its own")
    _check_sides(fitted, threat, key)
    fitted.check(threat)
    return BuiltAttack(fitted, ConfigKeys(**keys))


def build_suite(
    config: DictConfig,
    threat: ThreatModel,
    *,
    captions: bool,
    candidates: Candidates | None,
    seed: int,
    group: str = "attacks",
) -> dict[str, BuiltAttack]:
    """The attacks of ``attacks=...`` by name.

    Left out are those that perturb a modality which the threat model leaves clean or which the data set lacks: one
    suite serves all threat models.

    Raises:
        UserError: no attack of the suite fits, or one has a name that tables use themselves; or see `build_attack`.
    """
    named = {str(name): node for name, node in config.items()}
    refuse_reserved("an attack", named, "all")  # all of them in evaluation.curve_attack
    fitting = {
        name: node for name, node in named.items() if _fits_threat(node, threat, f"{group}.{name}", captions=captions)
    }
    if named and not fitting:
        raise UserError(
            f"none of the attacks {', '.join(named)} keeps to the threat model ({threat}): choose another suite, "
            "attacks=none with attack=..., or threat=both."
        )
    suite = {}
    for name, node in fitting.items():
        key = f"{group}.{name}"
        suite[name] = build_attack(node, threat, captions=captions, candidates=candidates, seed=seed, key=key)
    return suite


def check_unit(nodes: Mapping[str, Any], threat: ThreatModel, data: ImageTextData | ImageClassData) -> None:
    """Check that the unit of the caption budget fits the captions, before anything asks for candidates.

    Args:
        nodes: of attacks, by config key; nothing is checked unless one of them edits captions in that unit.

    Raises:
        UserError: in more than one of a hundred captions a "word" is most of the caption.
    """
    if not isinstance(data, ImageTextData) or not threat.moves_texts:
        return
    if not any(_unit(node, key) == threat.text.key for key, node in nodes.items()):
        return
    misfits = threat.text.misfits(data.captions)
    if misfits > 0.01 * len(data.captions):
        raise UserError(
            f"threat.words is {threat.words}, but {misfits} of {len(data.captions)} captions of {data.name} are in a "
            "script without blanks between words, so that one word may be the whole caption: choose "
            "threat=characters, or separate the words by blanks."
        )


def _unit(node: Any, key: str) -> str | None:
    """``words`` or ``characters``, in which the attack of a node edits captions; None: it leaves them clean."""
    kind: Any = _kind(node, key)
    if issubclass(kind, RetrievalAttack):
        kind = _kind(node["text"], f"{key}.text") if node.get("text") else None
    return getattr(kind, "unit", None)


def check_reach(built: BuiltAttack, threats: Iterable[ThreatModel]) -> None:
    """Check that the steps of an attack reach the boundary of every ball that it searches; else its figures flatter.

    Raises:
        UserError: steps too few or too short, where the attack has a step size of its own.
    """
    attack, key = built.attack, built.keys.image
    if isinstance(attack, RetrievalAttack):
        attack = attack.image  # type: ignore[assignment]
    for threat in threats:
        if not isinstance(attack, PGD | TorchAttack) or not threat.radius or attack.crosses(threat.radius):
            continue
        remedy = f"{key}.alpha=null, which scales with the radius"
        if isinstance(attack, TorchAttack):
            remedy = f"++{key}.params.alpha={2.5 * threat.radius / attack.steps:.4g}, or more steps"
        raise UserError(
            f"{key}: {attack.steps} steps of {attack.step_size(threat.radius):.4g} cannot cross a ball of {threat}: "
            f"set {remedy}."
        )


def _search(settings: Mapping[str, Any], candidates: Candidates | None, key: str, *, seed: int, **parts: Any) -> Any:
    kind = _kind(settings, key)
    if getattr(kind, "needs_candidates", False) and "candidates" not in settings and candidates is not None:
        parts["candidates"] = candidates()
    return construct(dict(settings), node=key, seed=seed, **parts)


def _kind(node: Any, key: str) -> type[Attack]:
    """The class of a node.

    Raises:
        UserError: it names none, there is none of this name, or it is no attack.
    """
    target = node.get("_target_") if isinstance(node, Mapping | DictConfig) else None
    if not isinstance(target, str):
        raise UserError(f"{key} is {node!r}, but must be an attack: choose one of `robustcli list attack`.")
    try:
        kind = get_class(target)
    except Exception as error:  # whatever an import of another's module raises
        raise UserError(
            f"{key}._target_ is {str(target)!r}, which cannot be imported: name a class such as robustcli.attacks.PGD."
        ) from error
    if not issubclass(kind, Attack):
        raise UserError(f"{key} is {kind.__name__}, which is no attack: choose one of `robustcli list attack`.")
    return kind


def _refuse_budget(node: Mapping[str, Any], place: str) -> None:
    for key, threat_key in BUDGETS.items():
        if node.get(key) is not None:
            raise UserError(
                f"{place}.{key} is {node[key]}, but what an attack may change is the threat model, one for all: set "
                f"{threat_key}={node[key]} instead."
            )


def _for_captions(attack: Any, key: str) -> RetrievalAttack:
    if isinstance(attack, ImageAttack):
        return SepAttack(image=attack, seed=attack.seed)
    if isinstance(attack, TextAttack):
        return SepAttack(text=attack, seed=attack.seed)
    if isinstance(attack, RetrievalAttack):
        return attack
    raise UserError(
        f"{key} is {type(attack).__name__}, which needs a classifier, but the data set has captions: choose "
        "attack=retrieval_autoattack, or pgd, apgd or square for the images alone."
    )


def _for_classes(attack: Any, key: str) -> ClassifierAttack:
    if isinstance(attack, ClassifierAttack):
        return attack
    raise UserError(
        f"{key} is {type(attack).__name__}, which edits captions, but the data set has classes: choose an attack of "
        "images alone, such as attack=pgd or attack=autoattack."
    )


def _check_sides(attack: RetrievalAttack | ClassifierAttack, threat: ThreatModel, key: str) -> None:
    """A `UserError` where the attack perturbs a modality that the threat model leaves clean."""
    image = isinstance(attack, ClassifierAttack) or attack.image is not None
    text = isinstance(attack, RetrievalAttack) and attack.text is not None
    for side, perturbed, allowed in (("images", image, threat.moves_images), ("captions", text, threat.moves_texts)):
        if perturbed and not allowed:
            raise UserError(
                f"{key} changes {side}, but the threat model ({threat}) leaves them as they are: choose "
                f"threat={'both' if image and text else 'image' if image else 'text'}, or another attack."
            )


def _fits_threat(node: Any, threat: ThreatModel, key: str, *, captions: bool) -> bool:
    """True if an attack node perturbs only modalities that the data set has and the threat model allows."""
    kind = _kind(node, key)
    if issubclass(kind, RetrievalAttack):
        sides = {side: _kind(node[side], f"{key}.{side}") for side in _SIDES if node.get(side)}
    else:
        sides = {"text" if issubclass(kind, TextAttack) else "image": kind}
    if not captions:
        return issubclass(kind, ClassifierAttack) and threat.moves_images
    if issubclass(kind, ClassifierAttack) and not issubclass(kind, ImageAttack):  # needs logits
        return False
    text: Any = sides.get("text")
    # The unit too: a search over words says nothing about a budget of characters.
    text_fits = text is None or (threat.moves_texts and text.unit == threat.text.key)
    return text_fits and ("image" not in sides or threat.moves_images)
