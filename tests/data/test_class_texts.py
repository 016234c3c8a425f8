"""Templates and names of classes, from the set, the field's lists and the user."""

import importlib.util
from pathlib import Path
from typing import Any

import open_clip.zero_shot_metadata as published
import pytest

from robustcli.data import Digits, SceneClasses, class_texts
from robustcli.data.classes import ImageClassData
from robustcli.utils.errors import UserError

BENCHMARK = importlib.util.find_spec("clip_benchmark") is not None
NO_BENCHMARK = "clip-benchmark (the extra zero-shot) is not installed"


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(split="test")


def test_a_set_without_texts_of_its_own_takes_the_simple_one(digits: Digits) -> None:
    found = class_texts(digits)
    assert (found.names, found.templates, found.origin) == (digits.classes, ("a photo of a {}.",), "simple")
    colours = SceneClasses("colour", split="test", train=8, val=8, test=8)
    for given in (None, "dataset"):
        own = class_texts(colours, given)
        assert own.templates == colours.templates and own.origin == "of scene_classes"
    assert class_texts(colours, "simple").templates == ("a photo of a {}.",)


def test_imagenet_s_lists_are_those_that_open_clip_ships(digits: Digits) -> None:
    templates = class_texts(digits, "imagenet80").templates
    assert [each.replace("{}", "dog") for each in templates] == [f("dog") for f in published.OPENAI_IMAGENET_TEMPLATES]
    assert len(templates) == 80

    class Thousand(Digits):
        def __init__(self) -> None:
            super().__init__(split="test")
            self.classes = tuple(f"n{number}" for number in range(1000))

    found = class_texts(Thousand(), "tecoa", "imagenet")
    assert found.names == tuple(published.IMAGENET_CLASSNAMES) and found.published
    assert found.templates == ("This is a photo of a {}",)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "a {}\n\nthe {} here\n"), ("a.json", '["a {}", "the {} here"]'), (None, None)]
)
def test_templates_of_the_user_s_own(digits: Digits, tmp_path: Path, name: str | None, content: str | None) -> None:
    given: Any = ["a {}", "the {} here"]
    if name is not None and content is not None:
        (tmp_path / name).write_text(content)
        given = str(tmp_path / name)
    assert class_texts(digits, given).templates == ("a {}", "the {} here")
    assert class_texts(digits, "the number {}").templates == ("the number {}",)


def test_names_of_the_user_s_own(digits: Digits, tmp_path: Path) -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    for given in (words, str(tmp_path / "words.txt")):
        assert class_texts(digits, None, given).names == tuple(words)


@pytest.mark.parametrize(
    ("templates", "names", "said"),
    [
        (["a photo"], None, r"'a photo' without \{\}"),
        ([], None, "templates is empty"),
        ("imagenet8", None, "did you mean 'imagenet80'"),
        ("no.txt", None, "templates is no.txt, which does not exist"),
        (7, None, "templates is 7: expected imagenet80"),
        (None, ["a", "b"], "class_names has 2 names, but digits has 10 classes"),
        (None, ["a"] * 10, "class_names has 'a' twice"),
        (None, "imagenet", "class_names has 1000 names"),
        (None, "imagnet", "did you mean 'imagenet'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(digits: Digits, templates: Any, names: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        class_texts(digits, templates, names)


@pytest.mark.skipif(BENCHMARK, reason="clip-benchmark is installed")
def test_a_missing_extra_is_one_sentence(digits: Digits) -> None:
    for given in ((None, "pets"), ("cars", None), ("dataset", None)):
        with pytest.raises(UserError, match=r"pip install 'robustcli\[zero-shot\]'"):
            class_texts(digits, *given)


@pytest.mark.skipif(not BENCHMARK, reason=NO_BENCHMARK)
def test_lists_of_clip_benchmark(digits: Digits) -> None:
    named: ImageClassData = Digits(split="test")
    named.name = "mnist"
    for found in (class_texts(digits, "mnist", "mnist"), class_texts(named, "dataset")):
        assert found.templates == ('a photo of the number: "{}".',) and found.names == digits.classes
        assert found.origin == "of mnist, clip-benchmark"
    assert len(class_texts(digits, "cars").templates) == 8
    known: ImageClassData = Digits(split="test")
    known.benchmark = "mnist"
    assert class_texts(known, "dataset", "dataset") == class_texts(digits, "mnist", "mnist")
    for other in ("pets", "cars"):  # of another number of classes; of none
        known.benchmark = other
        assert class_texts(known, "simple", "dataset").names == digits.classes
    with pytest.raises(UserError, match="clip-benchmark has none of digits"):
        class_texts(digits, "dataset")
    with pytest.raises(UserError, match="did you mean 'cars'"):
        class_texts(digits, "carz")
