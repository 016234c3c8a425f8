"""The embedded set: its bytes, its splits, and its relation of truth against a reading of the captions themselves."""

import itertools
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.data.scenes import Scenes, image_cache, synonym_table, vocabulary
from robustcli.data.scenes.captions import SYNONYMS
from robustcli.data.scenes.world import COLOURS, KINDS, NONE, PLACES, SIZES, TEXTURES, World, draw_world, scene_keys
from robustcli.utils.errors import UserError

COMMON = {word: line[0] for line in SYNONYMS for word in line}
SMALL = {"train": 64, "val": 40, "test": 40}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path))


def reading(caption: str, objects: list[tuple[str, ...]], texture: str) -> bool:
    """True if a caption is true of a scene, read word by word: an oracle that knows nothing of the set's predicates."""
    text = " ".join(COMMON.get(word, word) for word in caption.split())
    if text.startswith(("one shape", "two shapes", "three shapes")):
        number, text = text.split(" with ")
        if len(objects) != ["one", "two", "three"].index(number.split()[0]) + 1:
            return False
    if " on " in text:
        text, ground = text.rsplit(" on ", 1)
        if ground != texture:
            return False
    relation = next((word for word in ("above", "left of") if f" {word} " in text), None)
    phrases = text.split(f" {relation} ") if relation else text.split(" and ")
    # The full description tells every shape there is.
    if len(phrases) > 1 and " ".join(phrases[-1].split()[-2:]) in PLACES:
        if len(phrases) != len(objects):
            return False
    elif (
        text.startswith("a ") and " ".join(text.split()[-2:]) in PLACES and " in the " not in text and len(objects) != 1
    ):
        return False
    return any(
        all(holds(phrase, given) for phrase, given in zip(phrases, order, strict=False)) and related(relation, order)
        for order in itertools.permutations(objects, len(phrases))
    )


def holds(phrase: str, given: tuple[str, ...]) -> bool:
    words = [w for w in phrase.split() if w not in ("a", "in", "the", "something")]
    place = " ".join(words[-2:]) if " ".join(words[-2:]) in PLACES else None
    named = words[:-2] if place else words
    return all(word in given for word in named) and (place is None or place == given[3])


def related(relation: str | None, order: tuple[tuple[str, ...], ...]) -> bool:
    if relation is None:
        return True
    a, b = (PLACES.index(given[3]) for given in order[:2])
    return a // 2 < b // 2 if relation == "above" else a % 2 < b % 2


def test_truth_is_what_a_reader_of_the_captions_finds() -> None:
    data = Scenes(split="test", synonym_frequency=0.3, **SMALL)
    world = data.world
    found = data.relevance(torch.arange(40), torch.arange(240))
    for i in range(20):
        objects = [(COLOURS[c], KINDS[k], SIZES[s], PLACES[p]) for c, k, s, p in world.objects[i].tolist() if c != NONE]
        expected = [reading(caption, objects, TEXTURES[world.textures[i]]) for caption in data.captions]
        wrong = [data.captions[j] for j in range(240) if expected[j] != bool(found[i, j])]
        assert not wrong, (objects, wrong)


def test_own_captions_are_true_and_most_fit_several_images() -> None:
    data = Scenes(split="test", train=64, val=40, test=300)
    found = data.relevance(torch.arange(300), torch.arange(1800))
    assert bool(found[data.owner, torch.arange(1800)].all())
    fits = found.sum(0).view(300, 6).float().mean(0)
    assert fits[0] < 3 < fits[5], "the first caption is the full description, the last a vague one"


def test_bytes_are_those_of_the_recipe() -> None:
    """Pinned: a change of the recipe must be meant, and change ``_RECIPE`` and the shipped weights with it."""
    assert Scenes(split="test", **SMALL).fingerprint.startswith("c1f488904cf144ba")


def test_second_construction_reads_the_cache_and_is_equal() -> None:
    first, second = Scenes(split="val", **SMALL), Scenes(split="val", **SMALL)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.images(torch.tensor([3, 1])), second.images(torch.tensor([3, 1])))


def test_a_larger_set_starts_with_the_smaller() -> None:
    small, large = Scenes(split="train", **SMALL), Scenes(split="train", train=128, val=40, test=40)
    assert torch.equal(small.images(torch.arange(20)), large.images(torch.arange(20)))


def test_splits_share_no_scene_whatever_the_seeds() -> None:
    keys = [
        set(scene_keys(draw_world(split, 300, seed)).tolist())
        for split, seed in (("train", 1), ("val", 2), ("test", 1))
    ]
    assert all(len(k) == 300 for k in keys)
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_the_order_of_objects_makes_no_other_scene() -> None:
    world = draw_world("train", 50, 0)
    turned = World(world.objects[:, ::-1], world.textures)
    assert np.array_equal(scene_keys(world), scene_keys(turned))


@pytest.mark.parametrize("size", [32, 64])
def test_pixels(size: int) -> None:
    images = Scenes(split="val", size=size, **SMALL).images(torch.arange(8))
    assert images.shape == (8, 3, size, size) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.flatten(1).std(1).min() > 0.01


def test_contrast_scales_the_distance_from_grey() -> None:
    full, half = (Scenes(split="val", contrast=c, noise=0, **SMALL).images(torch.arange(20)) for c in (1.0, 0.5))
    assert float((half - 128 / 255).std() / (full - 128 / 255).std()) == pytest.approx(0.5, abs=0.02)


def test_synonym_frequency_is_the_share_of_rare_words() -> None:
    data = Scenes(split="train", synonym_frequency=0.2, train=400, val=40, test=40)
    words = [word for caption in data.captions for word in caption.split() if word in COMMON]
    share = sum(word != COMMON[word] for word in words) / len(words)
    assert share == pytest.approx(0.2, abs=0.02)
    assert all(
        word == COMMON.get(word, word)
        for c in Scenes(split="val", synonym_frequency=0, **SMALL).captions
        for word in c.split()
    )


def test_every_word_is_in_the_vocabulary_and_synonyms_are_mutual() -> None:
    data = Scenes(split="train", synonym_frequency=0.5, **SMALL)
    assert {word for caption in data.captions for word in caption.split()} <= set(vocabulary())
    table = synonym_table()
    assert all(word in table[other] for word, others in table.items() for other in others)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "dev"}, "test"),
        ({"size": 48}, "32 or 64"),
        ({"synonym_frequency": 4}, "between 0 and 1"),
        ({"contrast": 0}, "contrast"),
    ],
)
def test_mistakes_are_named(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Scenes(**{"split": "test", **SMALL, **change})


@pytest.mark.parametrize("content", [bytes(1000), b"", b"PK\x03\x04"])
def test_damaged_images_in_the_cache_are_rendered_anew(tmp_path: Path, content: bytes) -> None:
    whole = Scenes(split="test", size=32, test=4).images(torch.arange(4))
    (stored,) = (tmp_path / "scenes").glob("*.npz")
    intact = stored.read_bytes()
    stored.write_bytes(content)
    assert torch.equal(Scenes(split="test", size=32, test=4).images(torch.arange(4)), whole)
    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 1
    stored.write_bytes(flipped)
    assert torch.equal(Scenes(split="test", size=32, test=4).images(torch.arange(4)), whole)
    assert stored.read_bytes() == intact


def test_what_a_killed_run_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    def render_and_die() -> None:
        image_cache.np.savez = lambda path, **_: (Path(path).touch(), os._exit(1))  # type: ignore[assignment]
        Scenes(split="test", size=32, test=4)

    child = multiprocessing.get_context("fork").Process(target=render_and_die)
    child.start()
    child.join(30)
    assert [path.suffix for path in (tmp_path / "scenes").glob("*") if path.suffix == ".npz"] == []
    Scenes(split="test", size=32, test=4)
    assert sorted(path.suffix for path in (tmp_path / "scenes").iterdir()) == [".lock", ".npz"]
