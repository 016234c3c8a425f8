"""Edits of a caption, counted on the string that comes out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.attacks import Characters, Words
from robustcli.attacks.core.edit_distance import levenshtein
from robustcli.utils.errors import UserError


def _edits(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    if first[0] == second[0]:
        return _edits(first[1:], second[1:])
    return 1 + min(_edits(first[1:], second), _edits(first, second[1:]), _edits(first[1:], second[1:]))


@settings(max_examples=100, deadline=None)
@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edits_are_counted_as_the_definition_says(first: str, second: str) -> None:
    assert levenshtein(first, second) == _edits(first, second)


def test_words_and_characters_count_on_the_string() -> None:
    assert Words(1).count("a red dog", "a  red cat") == 1
    assert Words(1).count("a dog house here", "a kennel here") == 2
    assert Characters(1).count("a cat", "a cart") == 1
    with pytest.raises(RuntimeError, match="2 edits, 1 allowed"):
        Words(1).audit(["a red cat", "one big dog"], ["a red cat", "a small dog"])
    with pytest.raises(UserError, match=r"threat\.words is -1: expected a whole number"):
        Words(-1)
