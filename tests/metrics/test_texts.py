"""Diversity of texts by hand-computed values."""

import sys

import pytest

from robustcli.metrics import SelfBLEU, distinct_n
from robustcli.utils.errors import UserError


def test_distinct_n_by_hand() -> None:
    texts = [["a", "red", "dog"], ["a", "red", "cat"]]
    assert distinct_n(texts, 1) == pytest.approx(4 / 6)
    assert distinct_n(texts, 2) == pytest.approx(3 / 4)
    assert distinct_n(texts, 3) == 1
    assert distinct_n(texts, 4) is None and distinct_n([], 1) is None
    assert distinct_n([["a"], ["a"]], 2) is None


def test_self_bleu_of_equal_sentences_is_100() -> None:
    pytest.importorskip("sacrebleu", reason="needs the extra `text`")
    bleu = SelfBLEU()
    same = ["a", "small", "red", "circle", "on", "dots", "."]
    assert bleu([same, same, same]) == pytest.approx(100)
    assert bleu([["yes"], ["yes"]]) == pytest.approx(100), "a short text is not punished for the orders that it lacks"
    assert bleu([["a", "b", "c", "d"], ["e", "f", "g", "h"]]) == pytest.approx(0, abs=20)
    assert bleu([same]) is None
    near, far = bleu([same, [*same[:-1], "!"]]), bleu([same, [*same[:2], "blue", "square", "near", "bands"]])
    assert near is not None and far is not None and 100 > near > far


def test_without_sacrebleu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sacrebleu", "sacrebleu.metrics", "sacrebleu.metrics.bleu"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"robustcli\[text\]"):
        SelfBLEU()
