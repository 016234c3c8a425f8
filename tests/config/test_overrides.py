"""Words of an override, and short forms in full."""

from collections.abc import Collection

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from robustcli.config.overrides import in_folder, in_full, quoted, with_quotes

FORMS = {"eps": "threat.eps", "norm": "threat.norm"}


@pytest.mark.parametrize(
    ("word", "full"),
    [
        ("eps=4/255", "threat.eps=4/255"),
        ("eps=2/255,4/255", "threat.eps=2/255,4/255"),
        ("++eps=1", "++threat.eps=1"),
        ("norm=l2", "threat.norm=l2"),
        ("attack.image.eps=1", "attack.image.eps=1"),
        ("epsilon=1", "epsilon=1"),
        ("eps", "eps"),
        ("--cfg", "--cfg"),
    ],
)
def test_a_key_alone_is_written_out(word: str, full: str) -> None:
    assert in_full(["seed=1", word], lambda: ["seed", "threat", "threat.eps", "threat.norm"], FORMS) == ["seed=1", full]


@pytest.mark.parametrize("known", [["seed"], ["threat.eps", "eps"]], ids=["no long key", "a key of that name"])
def test_it_stays_where_the_command_means_something_else(known: Collection[str]) -> None:
    assert in_full(["eps=1"], lambda: known, FORMS) == ["eps=1"]


def test_keys_are_composed_only_for_a_short_form() -> None:
    def composed() -> Collection[str]:
        raise AssertionError("a composition costs a fifth of a second")

    assert in_full(["seed=1", "attack.image.eps=1", "-m"], composed, FORMS) == ["seed=1", "attack.image.eps=1", "-m"]


@pytest.mark.parametrize(
    ("word", "whole"),
    [
        ("dataset.table=a_{split}.csv", "dataset.table='a_{split}.csv'"),
        ("+dataset.table={split}/a.csv", "+dataset.table='{split}/a.csv'"),
        ("dataset.table=a b/{split}=1.csv", "dataset.table='a b/{split}=1.csv'"),
        ("dataset.pattern={split}-{000..009}.tar", "dataset.pattern='{split}-{000..009}.tar'"),
        ("dataset.pattern={split}-{0,1}.tar", "dataset.pattern='{split}-{0,1}.tar'"),
        ("dataset.table=a_{split}.csv,b_{split}.csv", "dataset.table='a_{split}.csv','b_{split}.csv'"),
        ("a='{split}'", "a='{split}'"),
        ("a=[{split}]", "a=[{split}]"),
        ("a={b: 1}", "a={b: 1}"),
        ("{split}", "{split}"),
    ],
)
def test_the_name_of_a_split_needs_no_quotes(word: str, whole: str) -> None:
    assert with_quotes(word) == whole and with_quotes(whole) == whole


def test_names_get_their_folder() -> None:
    choices = ["train_mat/sweep", "train_mat/tiny", "tiny"]
    assert in_folder("experiment=sweep", choices) == "experiment=train_mat/sweep"
    assert in_folder("experiment=sweep,train_mat/tiny", choices) == "experiment=train_mat/sweep,train_mat/tiny"
    assert in_folder("experiment=tiny", choices) == "experiment=tiny", "a choice of its own"
    assert in_folder("experiment=other", choices) == "experiment=other"


@given(st.text(alphabet="\\'\"${}[](),= aé\n", max_size=12))
@example("a\\b")
@example("${oc.env:HOME}")
@example("\\${x}")
def test_a_quoted_text_comes_back_as_it_was_through_grammar_and_interpolation(text: str) -> None:
    value = OverridesParser.create().parse_override(f"k={quoted(text)}").value()
    assert OmegaConf.to_container(OmegaConf.create({"k": value}), resolve=True) == {"k": text}
