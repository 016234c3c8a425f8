"""The same attack with something else in the place of its innermost search of images."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from robustcli.attacks.core.base import RetrievalAttack
from robustcli.attacks.core.classifier import Attack, ClassifierAttack

AnyAttack = ClassifierAttack | RetrievalAttack
_WRAPPED = "attack"  # the parameter of an attack around another one


def takes(attack: Attack, name: str) -> bool:
    """Whether ``name`` is a hyper-parameter of the attack."""
    return name in signature(type(attack)).parameters


def setting(attack: Attack | None, name: str, default: Any = None) -> Any:
    """The hyper-parameter ``name`` of the attack; ``default`` where it has none."""
    return getattr(attack, name) if attack is not None and takes(attack, name) else default


def layers(attack: AnyAttack) -> list[AnyAttack]:
    """The attack, what it wraps, and so on; last the one that searches."""
    inner = getattr(attack, _WRAPPED, None)
    return [attack, *(layers(inner) if isinstance(inner, ClassifierAttack | RetrievalAttack) else [])]


def image_search(attack: AnyAttack) -> ClassifierAttack | None:
    """The innermost search of images; None of an attack on captions alone."""
    last = layers(attack)[-1]
    if not isinstance(last, RetrievalAttack):
        return last
    return None if last.image is None else _classifier(layers(last.image)[-1])


def with_search(attack: AnyAttack, change: Callable[[ClassifierAttack], ClassifierAttack]) -> AnyAttack:
    """The attack with ``change`` of its innermost search of images in its place."""
    inner = getattr(attack, _WRAPPED, None)
    if isinstance(inner, ClassifierAttack | RetrievalAttack):
        return attack.replace(**{_WRAPPED: with_search(inner, change)})
    if isinstance(attack, RetrievalAttack):
        return attack if attack.image is None else attack.replace(image=with_search(attack.image, change))
    return change(attack)


def with_settings(attack: AnyAttack, **changed: object) -> AnyAttack:
    """The attack with other hyper-parameters of its innermost search; those that it does not have are left out."""
    return with_search(attack, lambda search: search.replace(**{k: v for k, v in changed.items() if takes(search, k)}))


def at_eps(attack: AnyAttack, eps: float, **changed: object) -> AnyAttack:
    """The attack within another radius, its step size scaled along."""

    def resized(search: ClassifierAttack) -> ClassifierAttack:
        step = {"alpha": setting(search, "alpha") * eps / setting(search, "eps")} if takes(search, "alpha") else {}
        settings = {"eps": eps, **step, **changed}
        return search.replace(**{name: value for name, value in settings.items() if takes(search, name)})

    return with_search(attack, resized)


def one_side(attack: AnyAttack, side: str) -> AnyAttack | None:
    """The attack with its ``image`` or its ``text`` part alone; None where it has no such part."""
    inner = getattr(attack, _WRAPPED, None)
    if isinstance(inner, RetrievalAttack):
        single = one_side(inner, side)
        return None if single is None else attack.replace(**{_WRAPPED: single})
    if isinstance(attack, RetrievalAttack):
        other = "text" if side == "image" else "image"
        return None if getattr(attack, side) is None else attack.replace(**{other: None})
    return attack if side == "image" else None


def _classifier(attack: AnyAttack) -> ClassifierAttack:
    assert isinstance(attack, ClassifierAttack)
    return attack
