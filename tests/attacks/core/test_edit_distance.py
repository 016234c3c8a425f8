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


# A brown dog runs on the grass: in Chinese, in Japanese, and in Thai, which puts blanks between phrases.
UNSPACED = [
    "\u4e00\u53ea\u68d5\u8272\u7684\u72d7\u5728\u8349\u5730\u4e0a\u5954\u8dd1",
    "\u8336\u8272\u3044\u72ac\u304c\u8349\u306e\u4e0a\u3092\u8d70\u3063\u3066\u3044\u308b\u3002",
    "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e2a\u0e35\u0e19\u0e49\u0e33\u0e15\u0e32\u0e25 \u0e27\u0e34\u0e48\u0e07",
]
SPACED = [
    "a brown dog runs on the grass",
    "dog",
    "\uac08\uc0c9 \uac1c\uac00 \uc794\ub514\uc5d0\uc11c \ub2ec\ub9b0\ub2e4",  # Korean
    "\u4e00 \u53ea \u68d5\u8272 \u7684 \u72d7 \u5728 \u8349\u5730 \u4e0a \u5954\u8dd1",  # Chinese, cut into words
    "a dog called \u65fa\u65fa runs on the grass",
]


def test_a_word_of_a_script_without_blanks_is_no_unit() -> None:
    assert Words(1).misfits(UNSPACED) == 3 and Words(1).misfits(SPACED) == 0 and Words(1).misfits([]) == 0
    assert Characters(1).misfits(UNSPACED) == 0
