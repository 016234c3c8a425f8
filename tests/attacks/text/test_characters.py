"""Character edits against the plainest search that could be written.

Shapes: M captions.
"""

import string
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from robustcli.attacks import CharacterEdits, Characters, SepAttack, ThreatModel
from robustcli.attacks.core.losses import TEXT_LOSSES, Target, text_objective
from robustcli.attacks.core.oracle import TextObjective
from robustcli.attacks.text.characters import ALPHABET, NEIGHBOURS
from robustcli.builders.attacks import build_attack
from robustcli.config.compose import compose
from robustcli.utils.errors import UserError

from ..conftest import LetterDual, ToyDual, make_pairs

LETTERS = "aez "
ONE = torch.tensor([0])


def _loss(model: LetterDual, objective: TextObjective, caption: str, row: int) -> float:
    with torch.no_grad():
        return float(objective(model.encode_text(model.tokenize([caption])), torch.tensor([row])))


def _naive(model: LetterDual, objective: TextObjective, caption: str, row: int, budget: int, positions: int) -> str:
    """Charmer as its paper tells it, over a caption in which "_" stands in every gap: a place then holds one sign,
    and every edit is the replacement of one sign by another.
    """

    def spread(text: str) -> list[str]:
        return list("_" + "".join(f"{letter}_" for letter in text))

    def put(text: str, place: int, sign: str) -> str:
        signs = spread(text)
        signs[place] = sign
        return "".join(signs).replace("_", "")

    def loss(text: str) -> float:
        return _loss(model, objective, text, row)

    best = caption
    for _ in range(budget):
        signs = spread(best)
        test = [put(best, place, "_" if sign == " " else " ") for place, sign in enumerate(signs)]
        ranked = sorted(range(len(signs)), key=lambda place: -loss(test[place]))[:positions]
        tried = [put(best, place, sign) for place in sorted(ranked) for sign in f"_{LETTERS}" if sign != signs[place]]
        top = max(tried, key=loss)
        if loss(top) <= loss(best):
            break
        best = top
    return best


@pytest.mark.parametrize("objective", TEXT_LOSSES)
@pytest.mark.parametrize(("budget", "positions"), [(1, 3), (2, 5)])
def test_batched_is_the_same_as_the_paper_s_loop(
    letters: LetterDual, objective: str, budget: int, positions: int
) -> None:
    target = Target(letters, make_pairs(letters, (1,) * 3), None)
    pairs, plain = target.pairs, text_objective(objective, target)
    attack = CharacterEdits(max_characters=budget, positions=positions, alphabet=LETTERS)
    found = attack.maximise(letters, plain, pairs.captions, pairs.caption_ids)
    assert list(found) == [_naive(letters, plain, c, j, budget, positions) for j, c in enumerate(pairs.captions)]
    assert all(new != old for new, old in zip(found, pairs.captions, strict=True))


def _outcomes(letters: LetterDual, caption: str, budget: int, **settings: object) -> set[str]:
    """All texts that a search without any hope meets: its probes, its edits, the clean caption and an empty one."""
    seen = set[str]()
    attack = CharacterEdits(max_characters=budget, positions=99, **settings)  # type: ignore[arg-type]

    class Watched(LetterDual):
        def tokenize(self, captions: Sequence[str]) -> Tensor:
            seen.update(captions)
            return super().tokenize(captions)

    attack.maximise(Watched(), lambda f, rows: 0 * f.sum(1), [caption], ONE)
    return seen


def test_charmer_replaces_puts_in_and_leaves_out_every_character(letters: LetterDual) -> None:
    seen = _outcomes(letters, "ab", 1, alphabet="xy")
    edits = {"b", "a", "xb", "yb", "ax", "ay", "xab", "yab", "axb", "ayb", "abx", "aby"}
    probes = {"", " ab", " b", "a b", "a ", "ab ", "ab"}
    assert seen == edits | probes


def test_typos_are_keys_that_touch_and_letters_in_the_wrong_order(letters: LetterDual) -> None:
    probes = {"", "Pa", " a", "P "}
    slips = {"Oa", "La", "Pq", "Pw", "Ps", "Pz"}
    assert _outcomes(letters, "Pa", 1, search="typos") == probes | slips
    assert _outcomes(letters, "Pa", 2, search="typos") == probes | slips | {"aP"}
    digits = _outcomes(letters, "a1b", 2, search="typos") - {""}
    assert all(len(text) == 3 and text[1] == "1" for text in digits)


def test_the_keyboard_is_symmetric_and_every_key_touches_some() -> None:
    assert len(NEIGHBOURS) == 26
    assert all(letter in NEIGHBOURS[other] for letter, others in NEIGHBOURS.items() for other in others)
    assert set(NEIGHBOURS["s"]) == set("awedxz")
    assert len(set(ALPHABET)) == len(ALPHABET)


def test_a_swap_takes_two_of_the_budget(letters: LetterDual) -> None:
    swapped = letters.encode_text(letters.tokenize(["ra"])).detach()
    towards = {budget: CharacterEdits(max_characters=budget, search="typos") for budget in (1, 2, 3)}
    found = {
        budget: attack.maximise(letters, lambda f, rows: (f * swapped).sum(1), ["ar"], ONE)[0]
        for budget, attack in towards.items()
    }
    assert found[2] == found[3] == "ra"
    assert found[1] != "ra"
    assert Characters(2).count("ra", "ar") == 2


def test_what_the_tokenizer_reads_alike_is_encoded_once(model: ToyDual) -> None:
    """To a tower that knows words, hundreds of misspellings are the same unknown word."""
    judged: list[int] = []

    def objective(features: Tensor, rows: Tensor) -> Tensor:
        judged.append(len(rows))
        return features.sum(1)

    CharacterEdits(max_characters=1, positions=99).maximise(model, objective, ["a red ball"], ONE)
    clean, probes, edits = judged
    assert (clean, probes) == (1, 21)
    assert edits < 40 < 99


def test_captions_of_all_sorts_and_settings(letters: LetterDual) -> None:
    attack = CharacterEdits(alphabet="a")
    captions = ["", " ", "é!", "Ab"]
    found = attack.maximise(letters, lambda f, rows: f.sum(1), captions, torch.arange(4))
    Characters(2).audit(found, captions)
    assert CharacterEdits(search="typos").maximise(letters, lambda f, rows: f.sum(1), ["", "12"], ONE) == ("", "12")
    for bad in ({"search": "beam"}, {"positions": 0}, {"alphabet": ""}, {"max_characters": -1}, {"objective": "own"}):
        with pytest.raises(UserError, match=next(iter(bad)).removeprefix("max_") + " is "):
            CharacterEdits(**bad)


def test_the_targets_of_an_attack_are_those_of_its_seed(letters: LetterDual) -> None:
    target = Target(letters, make_pairs(letters, (1,) * 6), None)
    pairs, found = target.pairs, set[tuple[str, ...]]()
    for seed in (1, 2):
        attack = CharacterEdits(max_characters=2, alphabet=LETTERS, objective="targeted", seed=seed)
        result = SepAttack(text=attack)(letters, pairs)
        towards = text_objective("targeted", target, seed=seed)
        assert result.captions == attack.maximise(letters, towards, pairs.captions, pairs.caption_ids)
        found.add(result.captions)
    assert len(found) == 2


def test_leaf_s_preset_puts_in_letters_of_both_cases_digits_punctuation_and_the_blank() -> None:
    node = compose("evaluate", ["attack=characters_leaf", "threat=characters"]).attack
    built = build_attack(node, ThreatModel(eps=0, characters=1), captions=True, candidates=None, seed=0, key="attack")
    attack = built.attack.text  # type: ignore[attr-defined]
    assert attack == CharacterEdits(alphabet=attack.alphabet, positions=20, objective="cross_entropy")
    assert sorted(attack.alphabet) == sorted(string.ascii_letters + string.digits + string.punctuation + " ")
