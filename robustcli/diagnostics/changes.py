"""The same attack with something else in the place of its innermost search of images."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from robustcli.attacks import PGD, Attack, ClassifierAttack, RetrievalAttack, ThreatModel

AnyAttack = ClassifierAttack | RetrievalAttack


def takes(attack: Attack, name: str) -> bool:
    """Whether ``name`` is a setting of the attack."""
    return any(field.name == name for field in fields(attack))


def setting(attack: Attack | None, name: str, default: Any = None) -> Any:
    """The setting ``name`` of the attack; ``default`` where it has none."""
    return getattr(attack, name) if attack is not None and takes(attack, name) else default


def layers(attack: AnyAttack) -> list[AnyAttack]:
    """The attack, what it wraps, and so on; last the one that searches."""
    inner = getattr(attack, "attack", None)
    return [attack, *(layers(inner) if isinstance(inner, ClassifierAttack | RetrievalAttack) else [])]


def image_search(attack: AnyAttack) -> ClassifierAttack | None:
    """The innermost search of images; None of an attack on captions alone."""
    last = layers(attack)[-1]
    if isinstance(last, ClassifierAttack):
        return last
    if last.image is None:
        return None
    found = layers(last.image)[-1]
    assert isinstance(found, ClassifierAttack)
    return found


def with_search(attack: AnyAttack, change: Callable[[ClassifierAttack], ClassifierAttack]) -> AnyAttack:
    """The attack with ``change`` of its innermost search of images in its place."""
    inner = getattr(attack, "attack", None)
    if isinstance(inner, ClassifierAttack | RetrievalAttack):
        return attack.replace(attack=with_search(inner, change))
    if isinstance(attack, RetrievalAttack):
        return attack if attack.image is None else attack.replace(image=with_search(attack.image, change))
    return change(attack)


def with_settings(attack: AnyAttack, **changed: object) -> AnyAttack:
    """The attack with other settings of its innermost search; those that it does not have are left out."""
    return with_search(attack, lambda search: search.replace(**{k: v for k, v in changed.items() if takes(search, k)}))


def resized(attack: AnyAttack, threat: ThreatModel, eps: float) -> tuple[AnyAttack, ThreatModel]:
    """The attack and the threat model at another radius; a step size that was given is scaled along."""

    def scaled(search: ClassifierAttack) -> ClassifierAttack:
        if isinstance(search, PGD) and search.alpha is not None and threat.radius:
            return search.replace(alpha=float(search.alpha) * eps / threat.radius)
        return search

    return with_search(attack, scaled), threat.at(eps)


def one_side(attack: AnyAttack, side: str) -> AnyAttack | None:
    """The attack with its ``image`` or its ``text`` part alone; None where it has no such part."""
    inner = getattr(attack, "attack", None)
    if isinstance(inner, RetrievalAttack):
        single = one_side(inner, side)
        return None if single is None else attack.replace(attack=single)
    if isinstance(attack, RetrievalAttack):
        other = "text" if side == "image" else "image"
        return None if getattr(attack, side) is None else attack.replace(**{other: None})
    return attack if side == "image" else None
