"""Flat views of configs."""

from omegaconf import OmegaConf

from robustcli.utils.flatten import ABSENT, differences, flatten, plain


def test_plain_resolves_what_it_can_and_keeps_fractions() -> None:
    config = OmegaConf.create(
        {"seed": 3, "a": {"seed": "${seed}", "eps": "4/255", "bad": "${nowhere}"}, "b": ["${seed}"]}
    )
    assert plain(config) == {"seed": 3, "a": {"seed": 3, "eps": "4/255", "bad": "${nowhere}"}, "b": [3]}


def test_flatten_joins_keys_and_keeps_lists_and_empty_mappings() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1], "e": {}}, "/") == {"a/b/c": 1, "d": [1], "e": {}}


def test_differences_see_values_types_and_absent_keys() -> None:
    old, new = {"a": 1, "b": {"c": 1}, "same": 0.5}, {"a": 1.0, "b": {"d": 2}, "same": 0.5}
    assert differences(old, new) == {"a": (1, 1.0), "b.c": (1, ABSENT), "b.d": (ABSENT, 2)}
    assert differences(old, new, ignore=("a", "b.c", "b.d")) == {}
