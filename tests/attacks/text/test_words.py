"""Word substitution against the plainest search that could be written.

Shapes: M captions, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest
import torch
from torch import Tensor

from robustcli.attacks import SynonymTable, TextAttack, ThreatModel, Words, WordSubstitution, frozen
from robustcli.attacks.core.losses import TEXT_LOSSES, Target, divergence, text_objective
from robustcli.attacks.core.oracle import TextEncoder, TextObjective, content_lengths
from robustcli.attacks.text.hotflip import first_order
from robustcli.attacks.text.words import SEARCHES
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import SYNONYMS, ToyDual, make_pairs, words

STOP = {"a", "the", "with", "this"}


def _run(attack: TextAttack, model: ToyDual, objective: str = "guided", n: int = 8) -> tuple[tuple[str, ...], Target]:
    target = Target(model, make_pairs(model, (2,) * n), None)
    pairs = target.pairs
    with frozen(model):
        found = attack.maximise(model, text_objective(objective, target), pairs.captions, pairs.caption_ids)
    return found, target


def _loss(model: ToyDual, objective: TextObjective, caption: str, row: int) -> float:
    with torch.no_grad():
        return float(objective(model.encode_text(model.tokenize([caption])), torch.tensor([row])))


def _variants(caption: str, at: Sequence[int]) -> list[tuple[int, str]]:
    split = caption.split()
    return [
        (position, " ".join([*split[:position], other, *split[position + 1 :]]))
        for position in at
        if split[position] not in STOP
        for other in SYNONYMS.get(split[position], [])
        if other not in STOP
    ]


def _naive_exhaustive(model: ToyDual, objective: TextObjective, caption: str, row: int, budget: int) -> str:
    best, loss, left = caption, _loss(model, objective, caption, row), list(range(len(caption.split())))
    for _ in range(budget):
        scored = [(_loss(model, objective, new, row), position, new) for position, new in _variants(best, left)]
        top = max(scored, key=lambda entry: entry[0], default=(-1e9, 0, ""))
        if top[0] <= loss:
            break
        loss, position, best = top
        left.remove(position)
    return best


def _naive_importance(model: ToyDual, objective: TextObjective, caption: str, row: int, budget: int) -> str:
    split = caption.split()
    clean = model.encode_text(model.tokenize([caption])).detach()

    def moved(position: int) -> float:
        masked = " ".join([*split[:position], "[UNK]", *split[position + 1 :]])
        return float(divergence(clean, model.encode_text(model.tokenize([masked])).detach()))

    best, loss, edits = caption, _loss(model, objective, caption, row), 0
    for position in sorted(range(len(split)), key=moved, reverse=True):
        if edits == budget:
            break
        scored = [(_loss(model, objective, new, row), new) for _, new in _variants(best, [position])]
        top = max(scored, key=lambda entry: entry[0], default=(-1e9, ""))
        if top[0] > loss:
            loss, best, edits = top[0], top[1], edits + 1
    return best


NAIVE: dict[str, Callable[[ToyDual, TextObjective, str, int, int], str]] = {
    "exhaustive": _naive_exhaustive,
    "importance": _naive_importance,
}


@pytest.mark.parametrize("search", sorted(NAIVE))
@pytest.mark.parametrize("objective", TEXT_LOSSES)
@pytest.mark.parametrize("budget", [1, 2])
def test_batched_is_the_same_as_one_by_one(model: ToyDual, search: str, objective: str, budget: int) -> None:
    found, target = _run(words(search=search, objective=objective, max_words=budget), model, objective)
    plain = text_objective(objective, target)
    expected = [NAIVE[search](model, plain, c, j, budget) for j, c in enumerate(target.pairs.captions)]
    assert list(found) == expected
    assert found != target.pairs.captions


@pytest.mark.parametrize("search", SEARCHES)
def test_the_budget_holds_stop_words_stay_and_nothing_gets_worse(model: ToyDual, search: str) -> None:
    for budget in (1, 2, 3):
        found, target = _run(words(search=search, max_words=budget), model)
        plain = text_objective("guided", target)
        assert Words(budget).audit(found, target.pairs.captions).max() <= budget
        for j, (new, old) in enumerate(zip(found, target.pairs.captions, strict=True)):
            changed = [(a, b) for a, b in zip(old.split(), new.split(), strict=True) if a != b]
            assert all(b in SYNONYMS[a] and a not in STOP for a, b in changed)
            assert _loss(model, plain, new, j) >= _loss(model, plain, old, j) - 1e-6


def test_more_words_and_a_fuller_search_never_raise_less(model: ToyDual) -> None:
    target = Target(model, make_pairs(model, (2,) * 8), None)
    plain = text_objective("guided", target)

    def reached(**hyper: object) -> Tensor:
        found, _ = _run(words(**hyper), model)
        return torch.tensor([_loss(model, plain, caption, j) for j, caption in enumerate(found)])

    one, two = reached(max_words=1), reached(max_words=2)
    assert (two >= one - 1e-6).all()
    assert two.mean() > one.mean()
    flips = [reached(search="hotflip", top_k=k) for k in (1, 3, 99)]
    assert all((more >= less - 1e-6).all() for less, more in pairwise(flips))
    assert flips[-1].tolist() == pytest.approx(one.tolist(), abs=1e-6)  # all verified: exhaustive
    clean = torch.tensor([_loss(model, plain, caption, j) for j, caption in enumerate(target.pairs.captions)])
    unverified = reached(search="hotflip", top_k=0)
    assert (unverified - clean).mean() > 0.5 * (one - clean).mean()  # the gradient ranks far better than chance


def test_the_promise_of_a_gradient_is_exact_to_first_order_for_one_token_and_a_mean_for_more(model: ToyDual) -> None:
    before = model.tokenize(["a red ball", "the box", "a red ball"])
    after = model.tokenize(["a red globe", "this small box", "a dark big ring ball"])
    gradient = torch.randn(2, 6, 12, generator=generator(0))
    rise = first_order(TextEncoder(model), before, after, gradient, torch.tensor([1, 0, 1]))
    table = model.table.weight.detach()
    assert rise[0] == pytest.approx(float(gradient[1, 3] @ (table[after[0, 3]] - table[before[0, 3]])), abs=1e-5)
    assert rise[1] == pytest.approx(
        float(gradient[0, 1] @ (table[after[1, 1:3]].mean(0) - table[before[1, 1]])), abs=1e-5
    )
    assert rise[2] == pytest.approx(
        float(gradient[1, 2] @ (table[after[2, 2:5]].mean(0) - table[before[2, 2]])), abs=1e-5
    )


@dataclass(frozen=True, kw_only=True)
class _Broken(WordSubstitution):
    """The search with its objective turned round or silenced."""

    factor: float = field(kw_only=False)

    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        def broken(features: Tensor, rows: Tensor) -> Tensor:
            return self.factor * objective(features, rows)

        return super().edit(encoder, broken, captions, caption_ids, threat)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_strength_check_notices_a_broken_search(model: ToyDual, search: str) -> None:
    def rise(attack: TextAttack) -> float:
        found, target = _run(attack, model)
        plain = text_objective("guided", target)
        clean = target.pairs.captions
        return sum(_loss(model, plain, found[j], j) - _loss(model, plain, clean[j], j) for j in range(len(clean)))

    sound = _Broken(1.0, search=search, candidates=SynonymTable(SYNONYMS))
    assert rise(sound) > 0.2
    assert rise(sound.replace(factor=-1.0)) < 0
    assert rise(sound.replace(factor=0.0)) == 0
    assert rise(sound.replace(max_words=0)) == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_a_caption_does_not_depend_on_its_batch(model: ToyDual, search: str) -> None:
    target = Target(model, make_pairs(model), None)
    pairs, attack = target.pairs, words(search=search, max_words=2)
    objective = text_objective("cross_entropy", target)
    whole = attack.maximise(model, objective, pairs.captions, pairs.caption_ids)
    picked = torch.tensor([5, 30, 2])
    part = attack.maximise(
        model,
        lambda f, rows: objective(f, picked[rows]),
        [pairs.captions[j] for j in picked],
        pairs.caption_ids[picked],
    )
    assert list(part) == [whole[j] for j in picked]


def test_an_edit_that_the_tokenizer_does_not_see_is_none(model: ToyDual) -> None:
    caption = "a ball a ball a ball a red box"  # the toy reads seven words
    source = SynonymTable({"box": ["cube"], "red": ["crimson"], "ball": ["Ball", "BALL"]})
    attack, passes = WordSubstitution(max_words=3, candidates=source), count()
    rising: TextObjective = lambda f, rows: torch.full((len(f),), float(next(passes)))  # noqa: E731
    edited, queries, _ = attack.edit(TextEncoder(model), rising, [caption], [0], attack.threat)
    assert (*edited,) == (caption,) and queries.tolist() == [1], "nor does it cost a pass"


def test_a_phrase_in_place_of_a_word_counts_in_full(model: ToyDual) -> None:
    phrase = SynonymTable({"red": ["big red"], "ball": ["big box ring"]})
    for budget, expected in ((1, "a big red ball"), (2, "a big red ball"), (3, "a red big box ring")):
        calls = count()  # each later variant is better than all before it
        attack = WordSubstitution(max_words=budget, candidates=phrase)
        found = attack.maximise(
            model,
            lambda f, rows, calls=calls: 10.0 * next(calls) + torch.arange(len(f)),
            ["a red ball"],
            torch.tensor([0]),
        )
        assert found == (expected,)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_word_after_a_phrase_counts_with_it(model: ToyDual, search: str) -> None:
    """Two words in place of the first one found use the budget up, though one position alone is edited."""
    source = SynonymTable({"red": ["big crimson"], "ball": ["sphere"]})
    attack = WordSubstitution(max_words=2, search=search, candidates=source)
    steps = count()

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        return features.sum(1) + 1e3 * next(steps) + 10.0 * torch.arange(len(rows)).flip(0)

    (found,) = attack.maximise(model, objective, ["a red ball"], torch.tensor([0]))
    assert found in ("a big crimson ball", "a red sphere")
    assert Words(2).count(found, "a red ball") <= 2


@pytest.mark.parametrize("search", SEARCHES)
def test_a_stop_word_is_neither_replaced_nor_put_in(model: ToyDual, search: str) -> None:
    """Whatever the table says: "the" could become blue, and red "this"."""
    table = SynonymTable({"the": ["blue", "navy"], "red": ["this", "the"], "ball": ["this", "globe"]})
    attack = WordSubstitution(candidates=table, search=search, max_words=3)
    edited = attack.maximise(model, lambda features, rows: features[:, 0], ("the red ball",), torch.arange(1))
    assert edited[0] in ("the red ball", "the red globe")
    assert attack._unedited(("the red ball",))[0].replacements == {2: ["globe"]}


def test_a_word_is_replaced_once(model: ToyDual) -> None:
    """In the second round the candidates of the other word alone are tried."""
    with torch.no_grad():
        clean = model.encode_text(model.tokenize(["a red ball"]))[0]
    attack, encoder = words(max_words=2), TextEncoder(model)
    objective: TextObjective = lambda features, rows: -(features * clean).sum(1)  # noqa: E731
    _, queries, _ = attack.edit(encoder, objective, ["a red ball"], [0], attack.threat)
    assert queries.tolist() == [1 + 4 + 2]


def test_a_search_beyond_the_budget_is_a_fault(model: ToyDual) -> None:
    class Greedy(WordSubstitution):
        def edit(
            self,
            encoder: TextEncoder,
            objective: TextObjective,
            captions: Sequence[str],
            caption_ids: Sequence[int],
            threat: ThreatModel,
        ) -> tuple[Sequence[str], Tensor, Tensor]:
            return ["two other words"] * len(captions), torch.zeros(1), torch.zeros(1)

    with pytest.raises(RuntimeError, match="edits, 1 allowed"):
        Greedy().maximise(model, lambda f, rows: f.sum(1), ["a red ball"], torch.tensor([0]))


def test_the_encoder_gives_each_caption_once_in_any_chunks(model: ToyDual) -> None:
    captions = list(make_pairs(model).captions)
    expected = model.encode_text(model.tokenize(captions)).detach()
    encoder = TextEncoder(model, chunk_tokens=20)
    assert torch.allclose(encoder.encode(captions[:3]), expected[:3], atol=1e-6)
    assert torch.allclose(encoder.encode(captions), expected, atol=1e-6)
    losses, gradient, tokens = encoder.embedding_gradient(captions, lambda f, rows: f[:, 0] * rows, torch.arange(32))
    vectors = model.table(model.tokenize(captions)).detach().requires_grad_(True)
    loss = model.encode_text(model.tokenize(captions), embeddings=vectors)[:, 0] * torch.arange(32)
    (slope,) = torch.autograd.grad(loss.sum(), vectors)
    assert torch.allclose(losses, loss, atol=1e-5)
    assert torch.allclose(gradient, slope[:, : gradient.shape[1]], atol=1e-5)
    assert content_lengths(tokens).tolist() == [len(caption.split()) + 2 for caption in captions]


def test_hyper_parameters_are_checked(model: ToyDual) -> None:
    for bad in ({"search": "beam"}, {"objective": "own"}, {"top_k": -1}, {"max_words": "one"}):
        key = next(iter(bad))
        with pytest.raises(UserError, match=r"threat\.words is 'one'" if key == "max_words" else rf"attack\.{key} is"):
            words(**bad)
    with pytest.raises(UserError, match="candidates are missing"):
        WordSubstitution().maximise(model, lambda f, rows: f.sum(1), ["a"], torch.tensor([0]))
    assert repr(words(max_words=2)) == (
        "WordSubstitution(seed=0, objective='guided', constraints=(), search='exhaustive', top_k=5, "
        "candidates=SynonymTable(11 words), max_words=2)"
    )
