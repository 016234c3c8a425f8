"""Conditions on the meaning of an edited caption."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.attacks import CharacterEdits, MaxShare, MinSimilarity, NoAntonyms, NoNewWords
from robustcli.attacks.core.oracle import TextEncoder
from robustcli.utils.errors import UserError

from ..conftest import LetterDual, ToyDual, words


class Angles:
    """Sentences of one number, the angle in degrees; arrays, as sentence-transformers gives them."""

    def encode(self, sentences: Sequence[str]) -> Any:
        angles = np.deg2rad([float(sentence) for sentence in sentences])
        return 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_cosine_of_both_captions_is_bounded(model: ToyDual) -> None:
    encoder = TextEncoder(model)
    bound = MinSimilarity(minimum=0.5, encoder=Angles())
    assert bound.allowed(["0", "0", "10", "0"], ["59", "61", "61", "0"], encoder) == [True, False, True, True]
    assert bound.allowed(["0"], ["60.001"], encoder) == [False]
    assert bound.allowed(["0"], ["60.001"], encoder, slack=1e-3) == [True]
    assert bound.allowed([], [], encoder) == []
    clean, variants = ["a red ball"] * 2, ["a crimson ball", "a blue ring"]
    features = model.encode_text(model.tokenize([clean[0], *variants])).detach()
    cosines = features[1:] @ features[0]
    assert cosines[1] < cosines[0] - 0.01
    between = MinSimilarity(minimum=float(cosines.mean()))
    assert between.allowed(clean, variants, encoder) == [True, False]
    assert MinSimilarity(minimum=-1).allowed(clean, variants, encoder) == [True, True]


def test_a_search_takes_the_best_of_what_is_similar_enough(model: ToyDual) -> None:
    def reached(minimum: float) -> float:
        attack = words(max_words=2, constraints=[MinSimilarity(minimum=minimum)])
        caption = "a big red ball"
        (found,) = attack.maximise(model, lambda f, rows: -(f @ clean), [caption], torch.tensor([0]))
        return float((model.encode_text(model.tokenize([found]))[0] @ clean).detach())

    clean = model.encode_text(model.tokenize(["a big red ball"]))[0].detach()
    free = reached(-1.0)
    assert free < 0.99
    assert reached(1.0) == pytest.approx(1.0, abs=1e-5)
    middle = (1 + free) / 2
    assert middle - 1e-4 <= reached(middle) < 1


def test_a_share_of_the_words_stays(model: ToyDual) -> None:
    encoder, bound = TextEncoder(model), MaxShare(maximum=0.25)
    assert bound.allowed(["a b c d"] * 3, ["a b c x", "a b y x", "a b c"], encoder) == [True, False, True]
    assert bound.allowed(["a b c"], ["a b x"], encoder) == [False]
    caption = "a big red ball"
    one = words(max_words=3, constraints=[bound])
    (found,) = one.maximise(model, lambda f, rows: f.sum(1), [caption], torch.tensor([0]))
    assert sum(a != b for a, b in zip(found.split(), caption.split(), strict=True)) == 1


def test_no_opposite_comes_in(model: ToyDual, tmp_path: Path) -> None:
    encoder, lines, table = TextEncoder(model), tmp_path / "antonyms.txt", tmp_path / "antonyms.json"
    lines.write_text("Big small \nopen closed\n\nopen shut\n")
    table.write_text(json.dumps({"big": ["small"], "open": ["closed", "shut"]}))
    clean = ["a BIG, open box", "a closed box", "big and small", "a box"]
    variants = ["a Small, open box", "a open box", "tiny and small", "a small box"]
    for source in (lines, table, {"small": ["big"], "shut": ["open"], "closed": ["open"]}):
        assert NoAntonyms(table=source).allowed(clean, variants, encoder) == [False, False, True, True]
    attack = words(constraints=[NoAntonyms(table={"red": ["crimson", "scarlet"], "ball": ["sphere", "globe"]})])
    assert attack.maximise(model, lambda f, r: f.sum(1), ["a red ball"], torch.tensor([0])) == ("a red ball",)


CLEAN = ["the cart stood", "The cart, the horse", "xyz", "a cart"]
EDITED = ["the car stood", "the czrt, the horse", "xyz the", "a c art"]


def test_no_word_of_the_list_comes_in(model: ToyDual, tmp_path: Path) -> None:
    encoder, file = TextEncoder(model), tmp_path / "words.txt"
    file.write_text("the a cart\nCar horse  art\n")
    for source in (file, str(file), ["the", "A", "cart", "car", "horse", "art"]):
        assert NoNewWords(words=source).allowed(CLEAN, EDITED, encoder) == [False, True, False, False]
    # Fewer of them than before: one as often as it stands, and a new one beside two that are broken is none.
    published = NoNewWords(words=file, compat=True)
    assert published.allowed(CLEAN, EDITED, encoder) == [False, True, False, False]
    clean, edited = ["the cart", "xyz", "the cart a", "the the"], ["the cart!", "xyy", "car x", "the th"]
    assert published.allowed(clean, edited, encoder) == [False, False, True, True]
    assert NoNewWords(words=file).allowed(clean, edited, encoder) == [True, True, False, True]


def test_a_search_of_characters_leaves_no_other_word(letters: LetterDual) -> None:
    """Without the rule it would take the edit that the rule forbids."""

    def found(**settings: Any) -> str:
        attack = CharacterEdits(max_characters=1, alphabet="bcfhmrt", positions=99, **settings)
        (text,) = attack.maximise(letters, lambda f, rows: f.sum(1), ["cat"], torch.tensor([0]))
        return text

    free = found()
    assert free != "cat"
    other = found(constraints=[NoNewWords(words=["cat", free])])
    assert other not in ("cat", free)


def test_mistakes_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "three.txt"
    path.write_text("one two three\n")
    for make in (
        lambda: MinSimilarity(minimum=2),
        lambda: MaxShare(maximum=-0.1),
        lambda: NoAntonyms(table=path),
        lambda: NoAntonyms(table=tmp_path / "absent.txt"),
        lambda: NoAntonyms(table=tmp_path / "absent.json"),
        lambda: NoNewWords(words=tmp_path / "absent.txt"),
        lambda: NoNewWords(words=tmp_path),
        lambda: NoNewWords(words=[]),
    ):
        with pytest.raises(UserError, match=r"attack\.constraints: (minimum|maximum|table|words) is"):
            make()
    shown = repr([MinSimilarity(minimum=0.5), MaxShare(maximum=1), NoAntonyms(table={"a": ["b"]})])
    assert shown == "[MinSimilarity(minimum=0.5, encoder=None), MaxShare(maximum=1.0), NoAntonyms(1 words)]"
    assert repr(NoNewWords(words=["a", "b"])) == "NoNewWords(2 words, compat=False)"
