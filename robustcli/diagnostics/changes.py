"""Modified copies of an attack: another innermost search, other settings, another radius, one part alone."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from robustcli.attacks import PGD, Attack, ClassifierAttack, RetrievalAttack, ThreatModel

AnyAttack = ClassifierAttack | RetrievalAttack


def has_setting(attack: Attack, name: str) -> bool:
    """True if ``name`` is a setting of the attack."""
    return any(field.name == name for field in fields(attack))


def setting(attack: Attack | None, name: str, default: Any = None) -> Any:
    """Value of the setting ``name``; ``default`` where the attack has none."""
    return getattr(attack, name) if attack is not None and has_setting(attack, name) else default


def layers(attack: AnyAttack) -> list[AnyAttack]:
    """Nested attacks from the outermost to the innermost, which holds the search."""
    inner = getattr(attack, "attack", None)
    return [attack, *(layers(inner) if isinstance(inner, ClassifierAttack | RetrievalAttack) else [])]


def image_search(attack: AnyAttack) -> ClassifierAttack | None:
    """Innermost image attack; None of an attack on captions alone."""
    last = layers(attack)[-1]
    if isinstance(last, ClassifierAttack):
        return last
    if last.image is None:
        return None
    innermost = layers(last.image)[-1]
    assert isinstance(innermost, ClassifierAttack)
    return innermost


def with_search(attack: AnyAttack, change: Callable[[ClassifierAttack], ClassifierAttack]) -> AnyAttack:
    """Copy of the attack with its innermost image attack replaced by ``change`` of it."""
    inner = getattr(attack, "attack", None)
    if isinstance(inner, ClassifierAttack | RetrievalAttack):
        return attack.replace(attack=with_search(inner, change))
    if isinstance(attack, RetrievalAttack):
        return attack if attack.image is None else attack.replace(image=with_search(attack.image, change))
    return change(attack)


def with_settings(attack: AnyAttack, **changed: object) -> AnyAttack:
    """Copy of the attack with other settings of its innermost image attack; others are ignored."""
    return with_search(
        attack, lambda search: search.replace(**{k: v for k, v in changed.items() if has_setting(search, k)})
    )


def at_eps(attack: AnyAttack, threat: ThreatModel, eps: float) -> tuple[AnyAttack, ThreatModel]:
    """Copies of attack and threat model at another radius; an explicit step size is scaled along."""

    def scaled(search: ClassifierAttack) -> ClassifierAttack:
        if isinstance(search, PGD) and search.alpha is not None and threat.radius:
            return search.replace(alpha=float(search.alpha) * eps / threat.radius)
        return search

    return with_search(attack, scaled), threat.at(eps)


def single_part(attack: AnyAttack, side: str) -> AnyAttack | None:
    """Copy of the attack with its ``image`` or its ``text`` part alone; None where it has no such part."""
    inner = getattr(attack, "attack", None)
    if isinstance(inner, RetrievalAttack):
        single = single_part(inner, side)
        return None if single is None else attack.replace(attack=single)
    if isinstance(attack, RetrievalAttack):
        other = "text" if side == "image" else "image"
        return None if getattr(attack, side) is None else attack.replace(**{other: None})
    return attack if side == "image" else None
