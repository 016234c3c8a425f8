"""The word tokenizer and its vocabulary."""

import torch

from robustcli.models import WordTokenizer, build_vocabulary
from robustcli.models.tokenizer import split_words


def test_words_lose_case_and_outer_punctuation() -> None:
    assert split_words("  The dog's t-shirt, (red) — wet .") == ["the", "dog's", "t-shirt", "red", "wet"]


def test_ids_of_a_caption() -> None:
    tokenizer = WordTokenizer(["red", "dog"], context_length=6)
    tokens = tokenizer(["Red dog!", "dog cat", "", "red red red red dog"])
    assert tokens.tolist() == [[1, 3, 4, 5, 0, 0], [1, 4, 2, 5, 0, 0], [1, 5, 0, 0, 0, 0], [1, 3, 3, 3, 3, 5]]
    assert tokens.dtype == torch.long
    assert len(tokenizer) == 6
    assert bool((tokens.amax(dim=1) == tokenizer.end).all())


def test_vocabulary_words_are_split_as_captions_are() -> None:
    assert WordTokenizer(["Dark red", "red", "-"], context_length=6).words == ("dark", "red")


def test_vocabulary_holds_the_most_frequent_words_in_one_order() -> None:
    captions = ["b a", "c a", "B.", "d"]
    assert build_vocabulary(captions) == ("a", "b", "c", "d")
    assert build_vocabulary(reversed(captions), max_words=3) == ("a", "b", "c")
