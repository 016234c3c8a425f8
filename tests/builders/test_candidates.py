"""Sources of words as a config names them, and what they take from the data set and the model."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

from robustcli.attacks import Cached, EmbeddingNeighbours, MaskedLM, SynonymTable
from robustcli.attacks.text import masked_lm
from robustcli.builders.candidates import build_candidates
from robustcli.config.compose import compose
from robustcli.data import Scenes
from robustcli.models import DualEncoder, build_vocabulary
from robustcli.utils.errors import UserError


class Constant:
    """A source of a user's own, which takes nothing from data or model."""

    fingerprint = "constant"

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, captions: Sequence[str]) -> list[list[tuple[int, str]]]:
        return [[(0, self.word)] for _ in captions]


def node(*overrides: str) -> DictConfig:
    config: DictConfig = compose("train_mat", list(overrides)).candidates
    return config


def test_a_table_is_the_data_set_s_where_none_is_given(
    scenes: Scenes, small_model: DualEncoder, tmp_path: Path
) -> None:
    found = build_candidates(node(), scenes, small_model)
    assert scenes.synonyms is not None
    assert found.fingerprint == SynonymTable({key: list(words) for key, words in scenes.synonyms.items()}).fingerprint
    (tmp_path / "table.json").write_text(json.dumps({"red": ["scarlet"]}))
    scenes.synonyms = None
    given = build_candidates(node(f"candidates.table={tmp_path / 'table.json'}"), scenes, small_model)
    assert given(["a red circle"]) == [[(1, "scarlet")]]
    with pytest.raises(UserError, match="dataset scenes brings no synonyms"):
        build_candidates(node(), scenes, small_model)


def test_neighbours_are_those_of_the_captions_words_in_the_model(scenes: Scenes, small_model: DualEncoder) -> None:
    found = build_candidates(node("candidates=neighbours", "candidates.top_k=3"), scenes, small_model)
    expected = EmbeddingNeighbours(small_model, build_vocabulary(scenes.captions), top_k=3)
    assert isinstance(found, EmbeddingNeighbours) and found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["candidates=neighbours", "candidates.top_k=many"], "EmbeddingNeighbours"),
        (["candidates.table=5"], "SynonymTable"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence(
    scenes: Scenes, small_model: DualEncoder, overrides: list[str], name: str
) -> None:
    with pytest.raises(UserError, match=f"candidates {name} cannot be made of its settings"):
        build_candidates(node(*overrides), scenes, small_model)


def test_a_file_that_is_not_there_is_said_to_be_so(scenes: Scenes, small_model: DualEncoder) -> None:
    with pytest.raises(UserError, match=r"candidates\.table is 'nowhere\.json', which does not exist: give"):
        build_candidates(node("candidates.table=nowhere.json"), scenes, small_model)
    with pytest.raises(UserError, match=r"candidates\.words is 'nowhere\.txt', which does not exist: give"):
        EmbeddingNeighbours(small_model, "nowhere.txt")


def test_what_a_language_model_says_is_kept_on_disk(
    scenes: Scenes, small_model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_lm, "_load", lambda name: (SimpleNamespace(get_vocab=dict), nn.Linear(1, 1)))
    found = build_candidates(node("candidates=masked_lm", "candidates.top_k=4"), scenes, small_model)
    assert isinstance(found, Cached) and isinstance(found.source, MaskedLM) and found.source.top_k == 4


def test_a_source_of_one_s_own_needs_no_hook(scenes: Scenes, small_model: DualEncoder) -> None:
    config = OmegaConf.create({"_target_": f"{__name__}.Constant", "word": "x"})
    assert build_candidates(config, scenes, small_model)(["a b"]) == [[(0, "x")]]
