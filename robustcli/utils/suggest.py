"""What a mistyped name was meant to be."""

from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches


def did_you_mean(wrong: str, valid: Sequence[str]) -> str:
    """``: did you mean 'x'?``, or nothing where no choice is near; upper and lower case count as the same."""
    lowered = {name.lower(): name for name in valid}
    near = get_close_matches(wrong.lower(), lowered, n=1, cutoff=0.4)
    return f": did you mean {lowered[near[0]]!r}?" if near else ""


def nearest_keys(wrong: str, valid: Sequence[str]) -> list[str]:
    """At most two keys like ``wrong``: in the whole name or the last part, and more so where the first is the same."""

    def likeness(name: str) -> float:
        whole = SequenceMatcher(None, wrong, name).ratio()
        last = SequenceMatcher(None, wrong.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        same = wrong.partition(".")[0] == name.partition(".")[0]
        return max(whole, 0.9 * last) + 0.1 * same

    scores = {name: likeness(name) for name in valid}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))[:2]
    return [name for name in ranked if scores[name] > max(0.65, scores[ranked[0]] - 0.03)]
