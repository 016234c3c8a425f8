"""The settings of an attack: frozen, all shown, replaced in a copy; those of a wrapper are its attack's."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from robustcli.attacks import ATTACKS, EOT, PGD, Attack, RetrievalEOT, SepAttack

from .conftest import family, whole

HIDDEN = {"protected", "noise"}  # hundreds of stop words, and a function


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_settings_are_frozen_shown_and_replaced(name: str) -> None:
    attack = whole(name)
    assert issubclass(family(name), Attack) and isinstance(attack, family(name))
    for setting in fields(attack):
        with pytest.raises(FrozenInstanceError):
            setattr(attack, setting.name, getattr(attack, setting.name))
    shown = {setting.name for setting in fields(attack) if setting.repr}
    assert {setting.name for setting in fields(attack)} - shown <= HIDDEN
    assert all(f"{key}={getattr(attack, key)!r}" in repr(attack) for key in shown)
    assert repr(attack).startswith(f"{type(attack).__name__}(")
    other = attack.replace(seed=5)
    assert other.seed == 5 and attack.seed == 0 and type(other) is type(attack)
    assert other.replace(seed=0) == attack and other != attack
    assert other.threat == attack.threat
    with pytest.raises(TypeError):
        attack.replace(nonsense=1)


def test_a_wrapper_has_norm_eps_and_seed_of_the_attack_inside_and_no_others() -> None:
    inside = PGD(norm="l2", eps=0.5, seed=3)
    outside: Any = EOT(inside, draws=2)
    assert (outside.norm, outside.eps, outside.seed) == ("l2", 0.5, 3)
    assert outside.replace(attack=PGD(seed=4)).seed == 4
    pairs: Any = RetrievalEOT(SepAttack(image=inside, seed=5), draws=2)
    assert pairs.image is inside and pairs.text is None and pairs.seed == 5
    for wrapped in (outside, pairs):
        with pytest.raises(TypeError, match="seed"):
            type(wrapped)(wrapped.attack, seed=1)
        with pytest.raises(ValueError, match="seed"):
            wrapped.replace(seed=1)
