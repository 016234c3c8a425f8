"""Checks by comparison with other attacks: black-box, stronger, transferred, or of a larger edit budget.

An attack by gradients should leave nothing for an attacker of less knowledge.
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
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import Judgement, exceeds_chance
from robustcli.diagnostics.searches import SmoothedPGD
from robustcli.utils.seeding import derive_seed

_BETTER = 0.002  # share of the queries that an attacker of less knowledge may fool beyond the attack under test
_LUCK = 0.03  # share of the queries that a greedy search may lose with one edit more
_EQUAL = 0.03  # share that a search of equal strength may add by luck
_COVERED = 0.05  # least share of the captions that an attack can edit
_STEPS = 30
_RESTARTS, _STEPS_OF_RESTART = 5, 20
_NOISES, _FEWEST_QUERIES = 4, 100


def black_box(context: CheckContext) -> Judgement | str:
    """Black-box attacks: Square and uniform noise. Survivors that these fool are a sign of useless gradients."""
    if (reason := context.no_radius()) is not None:
        return reason
    queries = context.affordable_queries(_FEWEST_QUERIES, _NOISES)
    name = f"Square ({queries} queries) or noise"
    attacks = _black_box_attacks(context, queries)
    return _compared(context, attacks, queries + _NOISES, name, context.advice.black_box, _BETTER)


def stronger_search(context: CheckContext) -> Judgement | str:
    """APGD on cross-entropy and margin, with a step size of each sample: survivors that it fools in addition."""
    if (reason := context.no_radius()) is not None:
        return reason
    if context.ensemble:
        return "an ensemble, which holds APGD"
    assert context.search is not None
    seed = derive_seed(context.search.seed, "diagnostics")
    searches = [APGD(steps=_STEPS, loss=loss, seed=seed) for loss in ("cross_entropy", "margin")]
    attacks = [_as_full_attack(context, search) for search in searches]
    name, passes = f"APGD with {_STEPS} steps", len(attacks) * (2 * _STEPS + 1)
    return _compared(context, attacks, passes, name, context.advice.stronger, _EQUAL)


def more_restarts(context: CheckContext) -> Judgement | str:
    """PGD on the margin from many random starts: survivors that it fools in addition."""
    if (reason := context.no_radius()) is not None:
        return reason
    assert context.search is not None
    search = PGD(
        steps=_STEPS_OF_RESTART, loss="margin", restarts=_RESTARTS, seed=derive_seed(context.search.seed, "diagnostics")
    )
    name, passes = f"PGD on the margin with {_RESTARTS} restarts", _RESTARTS * (2 * _STEPS_OF_RESTART + 1)
    return _compared(context, [_as_full_attack(context, search)], passes, name, context.advice.restarts, _EQUAL)


def smoothed_gradients(context: CheckContext) -> Judgement | str:
    """PGD along the gradient of the smoothed loss: survivors whose own gradient misled the attack."""
    if (reason := context.no_radius()) is not None:
        return reason
    if context.subject.randomised:
        return "the draws smooth the loss already"
    assert context.search is not None
    search = SmoothedPGD(seed=derive_seed(context.search.seed, "diagnostics"))
    attack, name = _as_full_attack(context, search), f"gradients averaged over {search.draws} noises"
    return _compared(context, [attack], search.steps * (2 * search.draws + 1), name, context.advice.rippled, _EQUAL)


def straight_through(context: CheckContext) -> Judgement | str:
    """Attack on the network behind a defence, with the identity for the gradient of what stands before it."""
    if (reason := context.no_radius()) is not None:
        return reason
    if (model := context.subject.straight_through()) is None:
        return "no network of its own was seen inside the model"
    assert context.search is not None
    seed = derive_seed(context.search.seed, "diagnostics")
    searches = [PGD(steps=_STEPS, loss=loss, seed=seed) for loss in ("cross_entropy", "margin")]
    name, passes = "images computed on the network inside", len(searches) * (2 * _STEPS + 1)
    attacks = [Surrogate(search, model) for search in searches]
    return _compared(context, attacks, passes, name, context.advice.inside, _EQUAL)


def transfer(context: CheckContext) -> Judgement | str:
    """Transfer attacks: survivors that images computed on other models fool."""
    others = {name: model for name, model in context.sources.items() if model is not context.subject.model}
    if not others:
        return "no other model to transfer from was given"
    if (reason := context.no_search() or context.not_averaged()) is not None:
        return reason
    if context.minimum_norm:
        return "a minimum-norm attack ends at the boundary of its own model"
    assert context.image_attack is not None
    return _compared(
        context,
        [_transferred(context.image_attack, model) for model in others.values()],
        len(others) * context.most_passes / context.draws,
        f"images computed on {', '.join(others)}",
        context.advice.transfer,
        _BETTER,
    )


def more_words(context: CheckContext) -> Judgement | str:
    """Monotonicity in the edit budget: one word or character more, and twice the candidates, keep every success."""
    if context.text_attack is None:
        return "the attack leaves captions alone"
    attackable = context.subject.attackable("text")
    if not bool(attackable.any()):
        return "no query of the sample that the attacker may edit is right when clean"
    text, threat = _retrieval_attack(context.text_attack).text, context.threat
    wider = replace(
        threat, words=threat.words + bool(threat.words), characters=threat.characters + bool(threat.characters)
    )
    shown = f"threat.{threat.text.key}={threat.text.n + 1}"
    widened = context.text_attack
    if setting(text, "top_k"):
        widened = _with_text(context.text_attack, {"top_k": 2 * setting(text, "top_k")})
        shown += f", top_k={2 * setting(text, 'top_k')}"
    before = context.subject.attacked(context.text_attack).success[attackable]
    after = context.subject.attacked(widened, threat=wider).success[attackable]
    lost = int((before & ~after).sum())
    rates = f"{100 * before.double().mean():.0f} % → {100 * after.double().mean():.0f} % fall"
    measured = f"{rates} with {shown}; {lost} stand up again"
    return Judgement(exceeds_chance(lost, len(before), _LUCK), measured, context.advice.words)


def coverage(context: CheckContext) -> Judgement | str:
    """Share of the captions that the search has an edit for; without candidates every caption stays clean."""
    if context.text_attack is None:
        return "the attack leaves captions alone"
    text = _retrieval_attack(context.text_attack).text
    covered = None if text is None else text.coverage(context.subject.captions)
    if covered is None:
        return f"{type(text).__name__} does not tell which captions it can edit"
    if not covered.captions:
        return "the sample has no captions"
    share = covered.editable_captions / covered.captions
    return Judgement(share < _COVERED, str(covered), context.advice.blank)


def _compared(
    context: CheckContext, attacks: Iterable[AnyAttack], passes: float, name: str, remedy: str, share: float
) -> Judgement:
    """Judgement on the survivors that fall to one of ``attacks``: on all of them, or the closest where passes are few.

    Args:
        passes: of all attacks for an image, at each of the draws that are averaged.
        share: of all queries that may fall by luck.
    """
    rows = context.affordable_survivors(passes * context.draws)
    more, count, measured = context.compared(rows, attacks, f"to {name}")
    return Judgement(exceeds_chance(more, count, share), measured, remedy)


def _black_box_attacks(context: CheckContext, queries: int) -> list[AnyAttack]:
    assert context.search is not None
    seed = context.search.seed
    square = Square(queries=queries, seed=derive_seed(seed, "diagnostics"))
    noises = [PGD(steps=0, loss="margin", seed=derive_seed(seed, "diagnostics", number)) for number in range(_NOISES)]
    return [_as_full_attack(context, search) for search in (square, *noises)]


def _as_full_attack(context: CheckContext, search: ImageAttack) -> AnyAttack:
    """The search as an attack of the kind under test (classifier or pairs), with as many draws averaged (EOT)."""
    if isinstance(context.full_attack, RetrievalAttack):
        whole = SepAttack(image=search, seed=context.full_attack.seed)
        return whole if context.draws == 1 else RetrievalEOT(whole, draws=context.draws)
    return search if context.draws == 1 else EOT(search, draws=context.draws)


def _transferred(attack: AnyAttack, model: object) -> AnyAttack:
    if isinstance(attack, RetrievalAttack):
        return RetrievalSurrogate(attack, model)  # type: ignore[arg-type]
    return Surrogate(attack, model)  # type: ignore[arg-type]


def _retrieval_attack(attack: AnyAttack) -> RetrievalAttack:
    innermost = layers(attack)[-1]
    assert isinstance(innermost, RetrievalAttack)
    return innermost


def _with_text(attack: AnyAttack, changed: dict[str, int]) -> AnyAttack:
    inner = getattr(attack, "attack", None)
    if isinstance(inner, RetrievalAttack):
        return attack.replace(attack=_with_text(inner, changed))
    assert isinstance(attack, RetrievalAttack) and attack.text is not None
    return attack.replace(text=attack.text.replace(**changed))
