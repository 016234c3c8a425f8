"""Settings of the groups without a schema are read in the types that their classes declare."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from robustcli.config.checks import check
from robustcli.config.compose import compose
from robustcli.config.leaves import declared_types
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
    assert declared_types("robustcli.attacks.PGD")["early_stop"] is bool
    assert declared_types("shutil.copytree") == {
        "symlinks": bool,
        "ignore_dangling_symlinks": bool,
        "dirs_exist_ok": bool,
    }
    assert declared_types("no.such.thing") == {}
