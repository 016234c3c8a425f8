"""Sources of replacements, and their cache."""

import json
import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from robustcli.attacks import Cached, EmbeddingNeighbours, SynonymTable
from robustcli.attacks.text.candidates import Replacements
from robustcli.utils.errors import UserError
from robustcli.utils.words import STOP_WORDS

from ..conftest import ToyDual


def test_synonyms_keep_the_punctuation_and_are_found_in_any_case() -> None:
    table = SynonymTable({"Dog": ["hound", "pup"], "red": ["crimson"]})
    assert table(["a DOG, red", "no match", ""]) == [[(1, "hound,"), (1, "pup,"), (2, "crimson")], [], []]
    assert table(['"red" dog.'])[0] == [(0, '"crimson"'), (1, "hound."), (1, "pup.")]


def test_a_table_is_read_from_json_and_names_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"dog": ["hound"]}))
    assert SynonymTable(path)(["dog"]) == [[(0, "hound")]]
    assert SynonymTable(path).fingerprint == SynonymTable({"dog": ["hound"]}).fingerprint
    assert SynonymTable(path).fingerprint != SynonymTable({"dog": ["pup"]}).fingerprint
    path.write_text('["dog"]')
    for bad in (path, tmp_path / "absent.json"):
        with pytest.raises(UserError, match=r"candidates\.table is"):
            SynonymTable(bad)
    with pytest.raises(UserError, match="null"):
        SynonymTable()(["dog"])


def test_neighbours_are_the_nearest_in_the_table(model: ToyDual) -> None:
    listed = ["red", "blue", "ball", "box", "cone"]
    unit = torch.nn.functional.normalize(model.table.weight.detach(), dim=1)
    ids = model.tokenize(listed)[:, 1]
    nearest = (unit[ids] @ unit[ids].T - 2 * torch.eye(5)).argsort(1, descending=True)[:, :2]
    source = EmbeddingNeighbours(model, words=listed, top_k=2)
    for row, word in enumerate(listed):
        assert source([f"a {word}"]) == [[(1, listed[j]) for j in nearest[row].tolist()]]
    before = source.fingerprint
    model.table.weight.data[ids[0]] = model.table.weight.data[ids[4]]
    assert EmbeddingNeighbours(model, words=listed, top_k=2).fingerprint != before


class Counting:
    """A source that counts what it is asked, and can fail."""

    fingerprint = "counting"

    def __init__(self, fails: bool = False) -> None:
        self.asked: list[str] = []
        self.fails = fails

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        if self.fails:
            raise RuntimeError("killed")
        self.asked.extend(captions)
        return [[(0, f"{caption}'s"), (2, "ü")] for caption in captions]


def test_answers_are_kept_for_the_next_process(tmp_path: Path) -> None:
    source, captions = Counting(), [f"caption {i % 700}" for i in range(800)]
    kept = Cached(source, tmp_path)
    first = kept(captions)
    assert first == Counting()(captions)
    assert len(source.asked) == 700
    assert kept(captions) == first
    again = Cached(Counting(fails=True), tmp_path)
    assert again(captions) == first
    with pytest.raises(RuntimeError, match="killed"):
        again(["new", *captions])
    assert Cached(Counting(), tmp_path)(["new"]) == [[(0, "new's"), (2, "ü")]]
    assert kept.fingerprint == "counting"


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("content", [b"", b"mine"])
def test_answers_are_not_written_through_a_link(tmp_path: Path, plant: str, content: bytes) -> None:
    """In a cache that users share, one of them may put a link in the place of a file that another will write."""
    target, place = tmp_path / "precious", Cached(Counting(), tmp_path).path
    target.write_bytes(content)
    getattr(place, plant)(target)
    with pytest.raises(UserError, match=r"\.sqlite cannot be written to \(it is a link"):
        Cached(Counting(), tmp_path)(["new"])
    assert target.read_bytes() == content
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is a link"):
        Cached(Counting(), tmp_path)(["new"])
    assert not (tmp_path / "nowhere").exists()


def test_a_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    target, source = tmp_path / "precious", Cached(Counting(), tmp_path)
    target.write_text("mine")
    source.path.with_name(f"{source.path.name}-journal").symlink_to(target)
    with suppress(UserError):
        source(["new"])
    assert target.read_text() == "mine"


def test_sources_do_not_share_a_file_and_the_cache_is_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path))
    one, two = Cached(SynonymTable({"a": ["b"]})), Cached(SynonymTable({"a": ["c"]}))
    assert (one(["a"]), two(["a"])) == ([[(0, "b")]], [[(0, "c")]])
    assert one.path != two.path
    assert one.path.is_relative_to(tmp_path)


def _fill(directory: Path, start: int) -> None:
    kept = Cached(Counting(), directory)
    for number in range(start, start + 40):
        kept([f"caption {number}"])


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, start)) for start in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Cached(Counting(fails=True), tmp_path)([f"caption {i}" for i in range(60)])) == 60


def test_stop_words_are_lower_case_and_carry_no_content() -> None:
    assert {"the", "of", "is", "under"} <= STOP_WORDS
    assert not {"dog", "red", "two", "left", "top", "small", "man"} & STOP_WORDS
    assert all(word == word.lower().strip() for word in STOP_WORDS)


def test_a_table_by_part_of_speech_is_flattened(tmp_path: Path) -> None:
    """The layout of WordNet's synonyms: the same word as noun and as verb."""
    path = tmp_path / "table.json"
    path.write_text('{"dog": {"noun": ["hound", "cad"], "verb": ["chase", "hound"]}, "cat": ["feline"]}')
    assert SynonymTable(path)(["a Dog, cat"]) == [[(1, "hound,"), (1, "cad,"), (1, "chase,"), (2, "feline")]]
    path.write_text('{"dog": {"noun": "hound"}}')
    with pytest.raises(UserError, match="expected JSON like"):
        SynonymTable(path)


@pytest.mark.parametrize("content", [bytes(8192), b"no database", b""])
def test_a_damaged_cache_of_candidates_is_made_anew(tmp_path: Path, content: bytes) -> None:
    kept = Cached(Counting(), tmp_path)
    before = kept(["a caption"])
    kept.path.write_bytes(content)
    assert Cached(Counting(), tmp_path)(["a caption"]) == before
    assert Cached(Counting(fails=True), tmp_path)(["a caption"]) == before


def test_a_cache_of_candidates_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    kept = Cached(Counting(), tmp_path)
    kept.path.mkdir()
    with pytest.raises(UserError, match=r"sqlite cannot be used \(.*\): set the environment variable ROBUSTCLI_CACHE"):
        kept(["a caption"])
