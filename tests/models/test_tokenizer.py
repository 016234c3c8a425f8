"""The word tokenizer and its vocabulary."""

import open_clip
import torch

from robustcli.models import WordTokenizer, build_vocabulary
from robustcli.models.text import cut_captions
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


def test_captions_that_do_not_fit_are_counted() -> None:
    tokenizer = WordTokenizer(["red"], context_length=6)
    fitting = ["", "red", "red red red", "red red red red"]
    assert cut_captions(tokenizer, fitting) == 0 and cut_captions(tokenizer, []) == 0
    assert cut_captions(tokenizer, [*fitting, "red red red red red", "a b c d e f g"]) == 2
    assert cut_captions(lambda texts: tokenizer(texts), ["red " * 9]) == 0, "a tokenizer whose context cannot be set"


def test_captions_that_do_not_fit_into_clips_context_are_counted() -> None:
    clip = open_clip.get_tokenizer("ViT-B-32")
    assert cut_captions(clip, ["a " * 75, "a " * 76, "a " * 200, "one dog"]) == 2
