"""Settings of the groups without a schema are read in the types that their classes declare."""

import shutil
from types import NoneType
from typing import Any

import pytest
from omegaconf import OmegaConf

from robustcli.attacks import PGD, SepAttack
from robustcli.config.checks import check
from robustcli.config.compose import compose
from robustcli.config.leaves import declared_types
from robustcli.data import Cifar10
from robustcli.utils.errors import UserError


def composed(command: str, *words: str) -> Any:
    config = compose(command, words)
    check(config)
    return config


@pytest.mark.parametrize("word", ["off", "no", "n", "'false'", "false"])
@pytest.mark.parametrize(
    ("command", "words", "key"),
    [
        ("train-mat", ["defense=mat"], "defense.image"),
        ("evaluate", ["attack=pgd"], "attack.random_start"),
        ("evaluate", [], "attacks.sga.image.random_start"),
    ],
)
def test_a_truth_value_of_an_untyped_group_is_read_as_yaml_would(
    command: str, words: list[str], key: str, word: str
) -> None:
    assert OmegaConf.select(composed(command, *words, f"{key}={word}"), key) is False


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("attack.random_start=none", "attack.random_start is 'none', but must be true or false"),
        ("attack.steps=ten", "attack.steps is 'ten', but must be a whole number"),
        ("attack.steps=2.5", "attack.steps is 2.5, but must be a whole number"),
        ("attack.momentum=off", "attack.momentum is 'off', but must be a number"),
    ],
)
def test_a_text_that_is_none_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed("evaluate", "attack=pgd", word)


def test_numbers_keep_their_value_and_null_stays() -> None:
    config = composed("evaluate", "attack=pgd", "attack.steps='7'", "attack.alpha=null")
    assert config.attack.steps == 7 and config.attack.alpha is None


def test_types_are_those_of_the_class_and_of_a_function_without_hints() -> None:
    kinds = declared_types(PGD)
    assert kinds["early_stop"] == {bool} and kinds["alpha"] == {int, float, str, NoneType}
    assert declared_types(SepAttack)["image"] == {object, NoneType}
    assert declared_types(Cifar10)["limit"] == {int, NoneType}, "of a constructor that is inherited"
    assert declared_types(shutil.copytree) == {
        "symlinks": {bool, NoneType},
        "ignore_dangling_symlinks": {bool, NoneType},
        "dirs_exist_ok": {bool, NoneType},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attacks.sep.image=/dev/zero"], r"attacks\.sep\.image is '/dev/zero', but must be an object"),
        (["attack=sep", "attack.text='😀'"], "attack.text is '😀', but must be an object"),
        (["attack=sga", "+attack.scales=7"], "attack.scales is 7, but must be a list"),
        (["attack=pgd", "attack.loss=[1]"], r"attack.loss is \[1\], but must be a text"),
        (
            ["attack=pgd", "attack.loss=true"],
            """attack.loss is True, but must be a text .attack.loss="'True'" is one""",
        ),
        (["attack=pgd", "attack.steps=null"], "attack.steps is null, but needs a value"),
        (["attack=pgd", "attack.steps=99999999999999999999"], "attack.steps is 9+, more than can be meant"),
        (["attack=pgd", "attack._target_=no.such"], r"attack._target_ is 'no\.such', which cannot be imported \(Mod"),
        (["attack=pgd", "attack._target_=os.sep"], r"attack._target_ is 'os\.sep', which no config may call"),
        (["threads=1000000"], "threads is 1000000, but must be from 1 to 1024"),
        (["dataset=karpathy", "dataset.annotations=1.5", "dataset.root=a"], "annotations is 1.5, but must be a text"),
    ],
)
def test_a_value_of_another_type_is_refused_before_anything_is_built(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed("evaluate", *words)


def test_a_name_of_digits_is_a_name() -> None:
    config = composed("evaluate", "dataset=karpathy", "dataset.annotations=a.json", "dataset.root=2024")
    assert config.dataset.root == "2024"
