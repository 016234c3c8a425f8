"""Suggestions for mistyped names: nearest choices and nearest dotted keys."""

from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches


def did_you_mean(wrong: str, valid: Sequence[str]) -> str:
    """The hint ``: did you mean 'x'?``, empty where no choice is near; case is ignored."""
    lowered = {name.lower(): name for name in valid}
    near = get_close_matches(wrong.lower(), lowered, n=1, cutoff=0.4)
    return f": did you mean {lowered[near[0]]!r}?" if near else ""


def nearest_keys(wrong: str, valid: Sequence[str]) -> list[str]:
    """At most two valid keys similar to ``wrong``, by whole name or last part; an equal first part weighs more."""

    def likeness(name: str) -> float:
        whole = SequenceMatcher(None, wrong, name).ratio()
        last = SequenceMatcher(None, wrong.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        same = wrong.partition(".")[0] == name.partition(".")[0]
        return max(whole, 0.9 * last) + 0.1 * same

    scores = {name: likeness(name) for name in valid}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))[:2]
    # An equal last part is as good: trainer.device may be meant as trainer.devices, or as device.
    equal = [name for name in ranked if name.rpartition(".")[2] == wrong.rpartition(".")[2]]
    return [name for name in ranked if name in equal or scores[name] > max(0.65, scores[ranked[0]] - 0.03)]
