"""EDA, one operation at a time, against what Wei and Zou describe; where synonyms come from."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from robustcli.data import Scenes
from robustcli.data.augment import EDA, Synonyms
from robustcli.data.augment.lexical import (
    delete_words,
    insert_synonyms,
    join_words,
    replace_synonyms,
    split_words,
    swap_words,
)
from robustcli.data.augment.synonyms import SynonymSource
from robustcli.utils.errors import UserError

TABLE = {"dog": ["hound"], "runs": ["sprints"], "ball": ["sphere", "orb"], "red": ["crimson"], "the": ["ye"]}
ALL = {"replacement": 0.1, "insertion": 0.1, "swap": 0.1, "deletion": 0.1}


def synonyms(word: str) -> list[str]:
    return TABLE.get(word.lower(), []) if word.lower() != "the" else []


def outputs(operation: object, caption: str, alpha: float, draws: int = 200) -> Counter[str]:
    words = split_words(caption)
    return Counter(
        join_words(operation(words, alpha, synonyms, np.random.default_rng(draw)))  # type: ignore[operator]
        for draw in range(draws)
    )


@pytest.mark.parametrize("caption", ["a dog.", 'He said: "a dog" !', "- a dog - runs -", "dog", "a  dog , red"])
def test_a_caption_is_joined_as_it_was(caption: str) -> None:
    assert join_words(split_words(caption)) == " ".join(caption.split())


def test_replacement_takes_so_many_words_that_are_no_stop_words() -> None:
    assert set(outputs(replace_synonyms, "the dog runs", 0.1)) == {"the hound runs", "the dog sprints"}
    assert set(outputs(replace_synonyms, "Dog near the red ball.", 0.4)) == {
        "Hound near the crimson ball.",
        "Hound near the red sphere.",
        "Hound near the red orb.",
        "Dog near the crimson sphere.",
        "Dog near the crimson orb.",
    }
    assert set(outputs(replace_synonyms, "the cat sits", 0.5)) == {"the cat sits"}


def test_insertion_puts_a_synonym_of_a_word_at_any_place() -> None:
    found = outputs(insert_synonyms, "the dog.", 0.1)
    assert set(found) == {"hound the dog.", "the hound dog.", "the dog hound."} and min(found.values()) > 40
    assert all(len(split_words(text)) == 6 for text in outputs(insert_synonyms, "the dog runs by", 0.5))


def test_a_swap_exchanges_two_words_and_leaves_the_punctuation() -> None:
    found = outputs(swap_words, "dog, runs far .", 0.1)
    assert set(found) == {"runs, dog far .", "far, runs dog .", "dog, far runs ."} and min(found.values()) > 40
    assert set(outputs(swap_words, "dog", 0.9)) == {"dog"}


def test_a_deletion_takes_each_word_with_its_chance_and_never_all() -> None:
    lengths = [len(split_words(text)) for text in outputs(delete_words, "a b c d e f g h i j.", 0.3, 1000).elements()]
    assert 6.8 < np.mean(lengths) < 7.2
    found = outputs(delete_words, "one two.", 1.0)
    assert set(found) == {"one.", "two."}, "one word is left, and the full stop"
    assert set(outputs(delete_words, "a dog, red", 0.5)) >= {"a, red", "a dog, red", "dog, red", "red"}


def test_the_operations_take_turns_over_the_captions() -> None:
    data = Scenes(split="train", train=40)
    eda = EDA(number=8, alpha=ALL)
    kinds: Counter[str] = Counter()
    for pair in eda.pairs(data, range(40), seed=0):
        assert pair.source_caption is not None
        before, after = data.captions[pair.source_caption].split(), str(pair.caption).split()
        same = sorted(before) == sorted(after)
        kinds["swap" if same else {0: "replacement", 1: "insertion"}.get(len(after) - len(before), "deletion")] += 1
    assert set(kinds) == set(ALL) and kinds["replacement"] > 60 and kinds["insertion"] > 60 and kinds["swap"] > 60
    used = Counter(pair.source_caption for pair in EDA(number=6, alpha={"swap": 0.1}).pairs(data, [0], seed=0))
    assert set(used) == set(data.captions_of()[0].tolist()), "each of the six captions once"


def test_the_first_of_more_are_those_of_fewer() -> None:
    data = Scenes(split="train", train=8)
    few, many = (EDA(number=number, alpha=ALL).pairs(data, [3], seed=0) for number in (2, 6))
    assert many[: len(few)] == few


def test_every_word_with_a_synonym_is_replaced_at_rate_1_and_one_at_rate_0(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(json.dumps({word: {"noun": others} for word, others in TABLE.items()}))
    data = Scenes(split="train", train=1)
    data.captions = ["The red dog runs", *data.captions[1:]]  # type: ignore[misc]
    first = int(data.captions_of()[0][0])
    assert first == 0
    (every,) = Synonyms(number=1, rate=1.0, synonyms=str(table)).pairs(data, [0], seed=0)
    assert every.caption == "The crimson hound sprints", "the stop word stands"
    (one,) = Synonyms(number=1, rate=0.0, synonyms=str(table)).pairs(data, [0], seed=0)
    assert sum(a != b for a, b in zip(str(one.caption).split(), data.captions[0].split(), strict=True)) == 1
    assert len(str(Synonyms(number=1, rate=0.0, synonyms=str(table)).model_sha256)) == 64


def test_a_set_without_synonyms_asks_for_a_table() -> None:
    data = Scenes(split="train", train=1)
    data.synonyms = None
    with pytest.raises(UserError, match=r"brings no synonyms.*FILE\.json.*wordnet"):
        EDA(number=1, alpha=ALL).check(data)


def write_wordnet(folder: Path) -> Path:
    """WordNet's files with one synset of nouns: dog, domestic_dog; its exception "doggen"."""
    folder = folder / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in ("adj", "adv", "noun", "verb"):
        for kind in ("index", "data"):
            (folder / f"{kind}.{name}").write_text("")
        (folder / f"{name}.exc").write_text("doggen dog\n" if name == "noun" else "")
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("".join(f"{n:02d}\tnoun.animal\t1\n" for n in range(45)))
    (folder / "data.noun").write_text("00000000 05 n 02 dog 0 domestic_dog 0 000 | barks  \n")
    (folder / "index.noun").write_text("".join(f"{w} n 1 0 1 0 00000000  \n" for w in ("dog", "domestic_dog")))
    return folder


def test_wordnet_knows_the_base_form_of_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk", reason="nltk is not installed: robustcli[wordnet]")
    monkeypatch.setattr(nltk.data, "path", [])
    data = Scenes(split="train", train=1)
    source = SynonymSource("wordnet", str(write_wordnet(tmp_path).parents[1]))
    look_up = source.of(data)
    assert list(look_up("Dog")) == ["domestic dog"] and list(look_up("dogs")) == ["dog", "domestic dog"]
    assert list(look_up("doggen")) == ["dog", "domestic dog"] and not look_up("cat")
    assert source.name == "wordnet" and len(str(source.sha256)) == 64


@pytest.mark.parametrize("damage", ["absent", "empty", "damaged"])
def test_wordnet_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = pytest.importorskip("nltk", reason="nltk is not installed: robustcli[wordnet]")
    monkeypatch.setattr(nltk.data, "path", [])
    folder = tmp_path / "wordnet"
    if damage != "absent":
        folder.mkdir()
    if damage == "damaged":
        (write_wordnet(folder) / "index.noun").write_text("dog n x\n")
    with pytest.raises(UserError, match=r"put nltk's corpus into FOLDER/corpora/wordnet"):
        SynonymSource("wordnet", str(folder))


def test_without_nltk_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nltk", None)
    with pytest.raises(UserError, match=r"install robustcli\[wordnet\]"):
        SynonymSource("wordnet")
