"""A masked language model that echoes: what it proposes for a word shows which row was read."""

import logging
from pathlib import Path

import pytest

from robustcli.attacks import MaskedLM
from robustcli.utils.errors import UserError

from .echo import VOCABULARY, save_echo

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_echo(tmp_path_factory.mktemp("bert"), transformers)


def test_each_row_echoes_its_piece(folder: Path) -> None:
    source = MaskedLM(str(folder))
    logits = source._logits([source._framed(source._pieces("the guitar near"))])
    assert [VOCABULARY[i] for i in logits[0].argmax(1).tolist()] == ["[CLS]", "the", "guitar", "near", "[SEP]"]


def test_a_word_gets_the_candidates_of_its_own_row(folder: Path) -> None:
    """With one proposal a row echoes its own word, which is dropped; the row before echoes another one."""
    caption = "the guitar near mountain,"
    fixed = MaskedLM(str(folder), top_k=1, threshold=-99.0)([caption])[0]
    assert fixed == []  # every row proposes but the word that stands there
    shifted = MaskedLM(str(folder), top_k=1, threshold=-99.0, compat="coattack")([caption])[0]
    assert shifted == [(1, "the"), (2, "guitar"), (3, "near,")]


def test_endings_special_pieces_and_the_word_itself_are_left_out(folder: Path) -> None:
    found = MaskedLM(str(folder), top_k=len(VOCABULARY), threshold=-99.0)(["guitar"])[0]
    assert found == [(0, word) for word in VOCABULARY[5:] if not word.startswith("##") and word != "guitar"]
    assert len(MaskedLM(str(folder), top_k=7, threshold=-99.0)(["guitar"])[0]) < len(found)
    assert MaskedLM(str(folder), top_k=99, threshold=99.0)(["guitar"])[0] == []


def test_rows_of_a_padded_vocabulary_are_no_words(folder: Path, tmp_path: Path) -> None:
    """Weights padded to a multiple of 64, as those of many published models; here the padding scores highest of all."""
    padded = save_echo(tmp_path, transformers, rows=64)
    plain = MaskedLM(str(folder), top_k=99, threshold=-99.0)
    source = MaskedLM(str(padded), top_k=99, threshold=-99.0)
    assert source._model.config.vocab_size > len(source._tokenizer)
    for caption in ("the guitar near", "snowy", "guitar"):
        assert source([caption]) == plain([caption])


def test_a_word_of_several_pieces_gets_whole_words_only(folder: Path) -> None:
    source = MaskedLM(str(folder), top_k=len(VOCABULARY), threshold=-99.0)
    assert [VOCABULARY[i] for i in source._pieces("snowy")] == ["snow", "##y"]
    found = [word for _, word in source(["snowy"])[0]]
    assert all(len(word.split()) == 1 and word != "snowy" for word in found)
    loose = [word for _, word in MaskedLM(str(folder), top_k=99, threshold=-99.0, compat="coattack")(["snowy"])[0]]
    assert any(len(word.split()) == 2 for word in loose)


def test_words_beyond_the_length_get_none_and_batches_change_nothing(folder: Path) -> None:
    short = MaskedLM(str(folder), top_k=9, threshold=-99.0, max_length=4)
    assert {position for position, _ in short(["the guitar near mountain"])[0]} == {0, 1}
    source = MaskedLM(str(folder), top_k=9, threshold=-99.0)
    captions = ["the guitar", "near the mountain hill", "snowy", ""]
    assert source(captions) == [source([caption])[0] for caption in captions]


def test_the_fingerprint_names_weights_and_settings(folder: Path) -> None:
    source = MaskedLM(str(folder))
    assert source.fingerprint == MaskedLM(str(folder)).fingerprint
    assert source.fingerprint != MaskedLM(str(folder), top_k=3).fingerprint
    source._model.bert.embeddings.word_embeddings.weight.data[6, 6] = 2.0
    assert source.fingerprint != MaskedLM(str(folder)).fingerprint


def test_the_fingerprint_names_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    """Words of the folder that were swapped are other candidates of the same weights."""
    other = save_echo(tmp_path, transformers)
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate([*VOCABULARY[:-1], "hills"])})
    source, changed = MaskedLM(str(folder)), MaskedLM(str(other))
    assert source.fingerprint == changed.fingerprint
    changed._tokenizer = tokenizer
    assert source.fingerprint != changed.fingerprint


@pytest.mark.parametrize("name", ["./absent", "/absent/bert", "~/absent-bert", "a/b/c", "here/absent"])
def test_a_folder_that_is_not_there_is_told_without_asking_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", no_hub)
    with pytest.raises(UserError, match="there is no such folder"):
        MaskedLM(name)


def test_a_hub_that_does_not_know_the_name_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The readers of transformers try again and again, with a line each time."""
    hub = pytest.importorskip("huggingface_hub")

    def unknown(self: object, name: str, **_: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise RuntimeError(f"404 {name}\nwith many more lines")

    monkeypatch.setattr(hub.HfApi, "model_info", unknown)
    with pytest.raises(UserError, match=r"'no-such-bert', where .* \(no folder, and the hub said: 404 no-such-bert\)"):
        MaskedLM("no-such-bert")
    assert not [record for record in caplog.records if "Retrying" in record.message]


def no_hub(*_: object, **__: object) -> None:
    raise AssertionError("the hub was asked")


def test_a_model_that_is_not_there_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name_or_path"):
        MaskedLM(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="compat"):
        MaskedLM("x", compat="sga")
