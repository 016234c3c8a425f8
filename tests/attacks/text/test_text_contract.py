"""The contract of every text attack: what it may change, and that it finds what there is to be found; an attack joins
with its row in `ATTACKS`.

Shapes: M captions, D embedding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, pairwise

import pytest
import torch
from torch import Tensor

from robustcli.attacks import MaxShare, SepAttack, SynonymTable, TextAttack, ThreatModel, WordSubstitution, frozen
from robustcli.attacks.core.losses import Target, text_objective
from robustcli.attacks.core.oracle import TextEncoder, TextObjective

from ..conftest import SYNONYMS, LetterDual, ToyDual, make_pairs, names_of, text_attack

NAMES = names_of(TextAttack)
OF_WORDS = [name for name in NAMES if text_attack(name).unit == "words"]
OF_CHARACTERS = [name for name in NAMES if name not in OF_WORDS]
ONE = torch.tensor([7])


@pytest.fixture(scope="module")
def target(letters: LetterDual) -> Target:
    return Target(letters, make_pairs(letters, (2,) * 4), None)


def _edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest replacements, insertions and deletions, from their definition."""
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = min(table[i][j + 1] + 1, table[i + 1][j] + 1, table[i][j] + (left != right))
    return table[-1][-1]


def _maximise(attack: TextAttack, target: Target, objective: TextObjective | None = None) -> tuple[str, ...]:
    with frozen(target.model):
        plain = objective or text_objective("guided", target)
        return attack.maximise(target.model, plain, target.pairs.captions, target.pairs.caption_ids)


def _rising() -> TextObjective:
    """Each later variant is better than all before it."""
    calls = count()
    return lambda features, rows: features.sum(1) + 9.0 * torch.arange(len(rows)) + 1e5 * next(calls)


def _shifted(objective: TextObjective, by: int, features: Tensor, rows: Tensor) -> Tensor:
    return objective(features, rows + by)


def _losses(target: Target, captions: Sequence[str]) -> Tensor:
    with torch.no_grad():
        features = target.model.encode_text(target.model.tokenize(captions))
        return text_objective("guided", target)(features, torch.arange(len(captions)))


@pytest.mark.parametrize("budget", [0, 1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_edits_counted_again_on_the_output_are_within_the_budget(
    letters: LetterDual, target: Target, name: str, budget: int
) -> None:
    result = SepAttack(text=text_attack(name, budget))(letters, target.pairs)
    split: Callable[[str], Sequence[str]] = str.split if name in OF_WORDS else str
    counted = [_edits(split(new), split(old)) for new, old in zip(result.captions, target.pairs.captions, strict=True)]
    assert result.edits.tolist() == counted
    assert max(counted) <= budget
    assert (result.captions != target.pairs.captions) == (budget > 0)
    assert (result.queries > 0).all() == (budget > 0)


@pytest.mark.parametrize("name", OF_WORDS)
def test_stop_words_stay_out_and_in(target: Target, name: str) -> None:
    table = SynonymTable({**SYNONYMS, "a": ["lime"], "with": ["navy"], "ball": ["and", "Under", "sphere"]})
    found = _maximise(text_attack(name, 3, candidates=table), target)
    for new, old in zip(found, target.pairs.captions, strict=True):
        changed = [(a, b) for a, b in zip(old.split(), new.split(), strict=True) if a != b]
        assert all(b in SYNONYMS[a] and a != "the" for a, b in changed)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_the_tokenizer_s_own_are_neither_touched_nor_put_in(letters: LetterDual, name: str) -> None:
    """A letter may complete "<end" to what the tokenizer takes for the end of the text."""
    table = SynonymTable({"ball": ["<end>", "x<end>y"], "red": ["<end>"]})
    settings: dict[str, object] = {"candidates": table} if name in OF_WORDS else {}
    if name == "characters":
        settings = {"alphabet": ">", "positions": 99}
    attack = text_attack(name, 2, **settings)
    (found,) = attack.maximise(letters, _rising(), ["a <end red ball"], ONE)
    end = letters.tokenize([""])[0, 1]
    assert (letters.tokenize([found]) == end).sum() == 1
    assert found == "a <end red ball" or name in OF_CHARACTERS


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_that_the_tokenizer_does_not_see_is_none(letters: LetterDual, name: str) -> None:
    caption = "a b " * 10 + "red ball "  # the tower reads 38 letters
    settings: dict[str, object] = {"positions": 99} if name in OF_CHARACTERS else {}
    (found,) = text_attack(name, 3, **settings).maximise(letters, _rising(), [caption], ONE)
    tokens = letters.tokenize([caption, found])
    if name in OF_WORDS:
        assert found == caption
    else:
        assert not torch.equal(tokens[0], tokens[1])
        assert found[-6:] == caption[-6:]


@pytest.mark.parametrize("name", NAMES)
def test_batched_is_the_same_as_one_by_one_and_the_same_again(target: Target, name: str) -> None:
    attack, objective = text_attack(name, 2), text_objective("cross_entropy", target)
    pairs = target.pairs
    whole = _maximise(attack, target, objective)
    assert _maximise(attack, target, objective) == whole
    for j, caption in enumerate(pairs.captions):
        own = partial(_shifted, objective, j)
        assert attack.maximise(target.model, own, [caption], pairs.caption_ids[j : j + 1]) == (whole[j],)


@pytest.mark.parametrize("name", NAMES)
def test_no_caption_is_worse_off_than_clean_and_more_edits_never_raise_less(target: Target, name: str) -> None:
    reached = [_losses(target, target.pairs.captions)]
    reached += [_losses(target, _maximise(text_attack(name, budget), target)) for budget in (1, 2, 3)]
    assert all((more >= less - 1e-6).all() for less, more in pairwise(reached))
    assert reached[1].mean() > reached[0].mean()
    assert reached[3].mean() > reached[1].mean()


WIDER: dict[str, list[dict[str, object]]] = {
    "words": [{"candidates": SynonymTable({word: others[:k] for word, others in SYNONYMS.items()})} for k in (0, 1, 2)],
    "hotflip": [{"top_k": k} for k in (1, 2, 99)],
    "characters": [{"positions": k} for k in (1, 4, 99)],
    "typos": [{"positions": k} for k in (1, 4, 99)],
}  # `bert` takes the first word that helps, so a word more may stand in the way of a better one


@pytest.mark.parametrize("name", sorted(WIDER))
def test_more_candidates_never_raise_less(target: Target, name: str) -> None:
    reached = [_losses(target, _maximise(text_attack(name, 1, **more), target)) for more in WIDER[name]]
    assert all((more >= less - 1e-6).all() for less, more in pairwise(reached))
    assert reached[-1].mean() > reached[0].mean()


def _mutated(name: str, target: Target, fault: str) -> tuple[str, ...]:
    plain = text_objective("guided", target)
    none: dict[str, object] = {"constraints": [MaxShare(maximum=0.0)]}
    if name in OF_WORDS:
        none = {"candidates": SynonymTable({})}
    blind: dict[str, object] = {"top_k": 0} if name == "hotflip" else {}
    mutations: dict[str, tuple[dict[str, object], TextObjective]] = {
        "sound": ({}, plain),
        "sign flipped": ({}, lambda f, rows: -plain(f, rows)),
        "no candidates": (none, plain),
        "no edits": ({}, plain),
        "objective zeroed": ({}, lambda f, rows: 0 * plain(f, rows)),
        "gradient zeroed": (blind, lambda f, rows: plain(f.detach(), rows) + 0 * f.sum(1)),
    }
    settings, objective = mutations[fault]
    return _maximise(text_attack(name, 0 if fault == "no edits" else 2, **settings), target, objective)


@pytest.mark.parametrize("name", NAMES)
def test_the_no_op_detector_notices_each_mutation(target: Target, name: str) -> None:
    clean = _losses(target, target.pairs.captions)

    def rise(fault: str) -> float:
        return float((_losses(target, _mutated(name, target, fault)) - clean).mean())

    assert rise("sound") > 0.05
    assert rise("sign flipped") < 0
    faults = ["no candidates", "no edits", "objective zeroed", *(["gradient zeroed"] if name == "hotflip" else [])]
    assert all(rise(fault) == 0 for fault in faults)


class _Picky:
    """Forbids some edits, and remembers what it was asked."""

    def __init__(self, forbidden: set[tuple[str, str]]) -> None:
        self.forbidden, self.asked = forbidden, set[tuple[str, str]]()

    def allowed(
        self, clean: Sequence[str], variants: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> list[bool]:
        self.asked.update(zip(clean, variants, strict=True))
        return [pair not in self.forbidden for pair in zip(clean, variants, strict=True)]


def _edited(target: Target, found: Sequence[str]) -> set[tuple[str, str]]:
    return {(old, new) for old, new in zip(target.pairs.captions, found, strict=True) if old != new}


@pytest.mark.parametrize("name", NAMES)
def test_constraints_are_asked_of_every_variant_and_obeyed(target: Target, name: str) -> None:
    """With its first choice forbidden, an attack makes the next best edit."""
    free = _edited(target, _maximise(text_attack(name, 1), target))
    picky = _Picky(free)
    bound = _edited(target, _maximise(text_attack(name, 1, constraints=[picky]), target))
    assert free <= picky.asked
    assert bound
    assert bound <= picky.asked - free


def test_an_attack_that_ignores_its_constraints_is_a_fault(model: ToyDual) -> None:
    class Deaf(WordSubstitution):
        def edit(
            self,
            encoder: TextEncoder,
            objective: TextObjective,
            captions: Sequence[str],
            caption_ids: Sequence[int],
            threat: ThreatModel,
        ) -> tuple[Sequence[str], Tensor, Tensor]:
            return ["a dark ball"], torch.zeros(1), torch.zeros(1)

    with pytest.raises(RuntimeError, match=r"Picky.* forbids that 'a red ball' becomes 'a dark ball'"):
        Deaf(constraints=[_Picky({("a red ball", "a dark ball")})]).maximise(
            model, lambda f, rows: f.sum(1), ["a red ball"], ONE
        )


@pytest.mark.parametrize("name", NAMES)
def test_settings_show_and_can_be_replaced(name: str) -> None:
    attack = text_attack(name, 3, constraints=[MaxShare(maximum=0.5)])
    again = attack.replace(seed=4, objective="drift")
    assert repr(again) == repr(text_attack(name, 3, constraints=[MaxShare(maximum=0.5)], seed=4, objective="drift"))
    assert "constraints=(MaxShare(maximum=0.5),)" in repr(again)
    assert f"max_{attack.unit}=3" in repr(again)
