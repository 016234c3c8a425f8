"""The checks that let an attacker who knows less, or may do more, have a try at what the attack leaves.

Shapes: N queries in all, Q queries that count.
"""

from collections.abc import Iterable
from dataclasses import replace

from robustcli.attacks.adaptive.eot import EOT, RetrievalEOT
from robustcli.attacks.adaptive.surrogate import RetrievalSurrogate, Surrogate
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.pgd import PGD
from robustcli.attacks.image.square import Square
from robustcli.attacks.multimodal.sep import SepAttack
from robustcli.diagnostics.changes import AnyAttack, layers, setting
from robustcli.diagnostics.evidence import Evidence
from robustcli.diagnostics.finding import Judgement, beyond
from robustcli.utils.seeding import derive_seed

_BETTER = 0.002  # share of the queries that may fall to an attacker who knows less, but not to the one who knows all
_LUCK = 0.03  # share of the queries that a greedy search of words may lose with one word more
_EQUAL = 0.03  # share that an equal search may add by luck
_STEPS = 30
_NOISES = 4


def black_box(case: Evidence) -> Judgement | str:
    """Square and plain noise see no gradient: where they fool what the attack leaves, its gradients are no use."""
    if (reason := case.no_radius()) is not None:
        return reason
    name = f"Square ({case.queries} queries) or noise"
    return _compared(case, _blind(case), name, case.advice.black_box, _BETTER)


def stronger_search(case: Evidence) -> Judgement | str:
    """APGD, which fits its step to every sample, on two losses: what it adds was missing from the number."""
    if (reason := case.no_radius()) is not None:
        return reason
    if case.ensemble:
        return "an ensemble, which holds APGD"
    assert case.search is not None
    seed = derive_seed(case.search.seed, "diagnostics")
    searches = [APGD(steps=_STEPS, loss=loss, seed=seed) for loss in ("cross_entropy", "margin")]
    rivals = [_as_given(case, search) for search in searches]
    return _compared(case, rivals, f"APGD with {_STEPS} steps", case.advice.stronger, _EQUAL)


def transfer(case: Evidence) -> Judgement | str:
    """Images computed on other models fool what the attack on this one leaves."""
    others = {name: model for name, model in case.sources.items() if model is not case.subject.model}
    if not others:
        return "no other model to transfer from was given"
    if (reason := case.no_search() or case.drawn()) is not None:
        return reason
    if case.minimum_norm:
        return "a minimum-norm attack ends at the boundary of its own model"
    assert case.attack is not None
    return _compared(
        case,
        [_from(case.attack, model) for model in others.values()],
        f"images computed on {', '.join(others)}",
        case.advice.transfer,
        _BETTER,
    )


def more_words(case: Evidence) -> Judgement | str:
    """One word or character more, and twice the candidates, hold all that was allowed before."""
    if case.text is None:
        return "the attack leaves captions alone"
    reached = case.subject.reached("text")
    if not bool(reached.any()):
        return "no query of the sample that the attacker may edit is right when clean"
    text, threat = _inner(case.text).text, case.threat
    wider = replace(
        threat, words=threat.words + bool(threat.words), characters=threat.characters + bool(threat.characters)
    )
    shown = f"threat.{threat.text.key}={threat.text.n + 1}"
    widened = case.text
    if setting(text, "top_k"):
        widened = _with_text(case.text, {"top_k": 2 * setting(text, "top_k")})
        shown += f", top_k={2 * setting(text, 'top_k')}"
    before = case.subject.attacked(case.text).success[reached]
    after = case.subject.attacked(widened, threat=wider).success[reached]
    lost = int((before & ~after).sum())
    rates = f"{100 * before.double().mean():.0f} % → {100 * after.double().mean():.0f} % fall"
    measured = f"{rates} with {shown}; {lost} stand up again"
    return Judgement(beyond(lost, len(before), _LUCK), measured, case.advice.words)


def _compared(case: Evidence, rivals: Iterable[AnyAttack], name: str, remedy: str, share: float) -> Judgement:
    more, left, count = case.more(*rivals)
    measured = f"{more} of the {left} that are left of {count} fall to {name}"
    return Judgement(beyond(more, count, share), measured, remedy)


def _blind(case: Evidence) -> list[AnyAttack]:
    assert case.search is not None
    seed = case.search.seed
    square = Square(queries=case.queries, seed=derive_seed(seed, "diagnostics"))
    noises = [PGD(steps=0, loss="margin", seed=derive_seed(seed, "diagnostics", number)) for number in range(_NOISES)]
    return [_as_given(case, search) for search in (square, *noises)]


def _as_given(case: Evidence, search: ImageAttack) -> AnyAttack:
    """The search as an attack on what the given one attacks; averaged over as many draws, if that does so."""
    if isinstance(case.given, RetrievalAttack):
        whole = SepAttack(image=search, seed=case.given.seed)
        return whole if case.draws == 1 else RetrievalEOT(whole, draws=case.draws)
    return search if case.draws == 1 else EOT(search, draws=case.draws)


def _from(attack: AnyAttack, model: object) -> AnyAttack:
    if isinstance(attack, RetrievalAttack):
        return RetrievalSurrogate(attack, model)  # type: ignore[arg-type]
    return Surrogate(attack, model)  # type: ignore[arg-type]


def _inner(attack: AnyAttack) -> RetrievalAttack:
    found = layers(attack)[-1]
    assert isinstance(found, RetrievalAttack)
    return found


def _with_text(attack: AnyAttack, changed: dict[str, int]) -> AnyAttack:
    inner = getattr(attack, "attack", None)
    if isinstance(inner, RetrievalAttack):
        return attack.replace(attack=_with_text(inner, changed))
    assert isinstance(attack, RetrievalAttack) and attack.text is not None
    return attack.replace(text=attack.text.replace(**changed))
