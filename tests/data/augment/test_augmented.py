"""A training set with augmented pairs beside its own, and with fewer captions; the methods of scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.data import Scenes
from robustcli.data.augment import (
    Augmented,
    AugmentedPair,
    Augmenter,
    FewerCaptions,
    OwnCaptions,
    Paraphrase,
    Redraw,
    read_pairs,
)
from robustcli.data.augment.base import distinct
from robustcli.data.augment.shards import shard_path, write_shard
from robustcli.data.base import ImageTextData
from robustcli.data.scenes.captions import truth
from robustcli.data.scenes.world import belongs
from robustcli.utils.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(split="train", train=40)


def stored(place: Path, data: ImageTextData, pairs: list[AugmentedPair]) -> Path:
    """A finished directory of `robustcli augment` with ``pairs`` of ``data``."""
    places = {row: at for rows in data.captions_of() for at, row in enumerate(rows.tolist())}
    write_shard(shard_path(place, 0), pairs, data.image_ids, places, {"method": "test"})
    manifest = {"command": "augment", "data": {data.split: data.provenance()}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "DONE").touch()
    return place


METHODS: list[Augmenter] = [Paraphrase(number=4), Redraw(number=3)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_pairs_of_an_image_do_not_depend_on_the_others(scenes: Scenes, method: Augmenter) -> None:
    whole = method.pairs(scenes, range(20), seed=1)
    parts = [pair for row in reversed(range(20)) for pair in method.pairs(scenes, [row], seed=1)]
    parts.sort(key=lambda pair: pair.source)
    assert list(map(_content, whole)) == list(map(_content, parts))
    assert list(map(_content, whole)) != list(map(_content, method.pairs(scenes, range(20), seed=2)))


def _content(pair: AugmentedPair) -> tuple[object, ...]:
    return (
        pair.source,
        pair.source_caption,
        pair.caption,
        pair.facts,
        None if pair.image is None else pair.image.tobytes(),
    )


def test_a_paraphrase_is_true_and_new(scenes: Scenes, tmp_path: Path) -> None:
    pairs = Paraphrase(number=4).pairs(scenes, range(40), seed=0)
    own = {(row, scenes.captions[j]) for row, rows in enumerate(scenes.captions_of()) for j in rows.tolist()}
    assert len(pairs) > 110 and all(pair.true for pair in pairs)
    assert not any((pair.source, pair.caption) in own for pair in pairs)
    data = Augmented(scenes, [stored(tmp_path, scenes, pairs)])
    # The claims that were stored are those of the words: a second opinion by the relation of the whole set.
    new = torch.arange(len(scenes.captions), len(data.captions))
    relation = data._relation(torch.arange(40), new)
    assert bool(relation[data.owner[new], torch.arange(len(new))].all())
    assert 0.005 < relation.float().mean() < 0.3, "and false of most other images"


def test_a_redrawn_image_shows_what_the_caption_says_and_stays_in_its_split(scenes: Scenes, tmp_path: Path) -> None:
    pairs = Redraw(number=6).pairs(scenes, range(40), seed=0)  # of all six forms of captions, "above" and "left of" too
    assert len(pairs) >= 236 and all(pair.true and pair.image is not None for pair in pairs)
    data = Augmented(scenes, [stored(tmp_path, scenes, pairs)])
    rows = torch.arange(40, len(data))
    said = torch.tensor([pair.source_caption for pair in pairs])
    assert bool(data._relation(rows, said).diagonal().all())
    facts = [json.loads(str(pair.facts)) for pair in pairs]
    from robustcli.data.scenes.world import World

    drawn = World(np.array([each["objects"] for each in facts]), np.array([each["texture"] for each in facts]))
    assert bool(belongs(drawn, "train").all()), "no scene of the test split is shown in training"
    pixels = data.images(rows)
    assert pixels.shape == (len(rows), 3, 32, 32)
    assert torch.equal((pixels[0] * 255).byte().permute(1, 2, 0), torch.from_numpy(pairs[0].image))
    apart = (pixels.flatten(1)[:, None] - scenes.images(torch.arange(40)).flatten(1)[None]).abs().amax(2)
    assert bool((apart > 0.05).all()), "new images, not the old ones"


def test_captions_of_the_source_that_are_false_of_a_redrawn_image_are_no_matches(
    scenes: Scenes, tmp_path: Path
) -> None:
    data = Augmented(scenes, [stored(tmp_path, scenes, Redraw(number=2).pairs(scenes, range(40), seed=0))])
    rows = torch.arange(40, len(data))
    own = data.item[rows][:, None] == scenes.owner[None, :]
    block = data.relevance(rows, torch.arange(len(scenes.captions)))
    assert torch.equal(block, data._relation(rows, torch.arange(len(scenes.captions))))
    assert 0.2 < block[own].float().mean() < 0.8, "a new image shows one caption, and not the rest of its source"
    assert bool(data.relevance(torch.arange(40), scenes.owner.new_tensor(range(240)))[scenes.owner, range(240)].all())


@pytest.mark.parametrize("kind", [Paraphrase, Redraw])
def test_misaligned_statements_are_as_many_as_asked_for(scenes: Scenes, kind: type[Paraphrase] | type[Redraw]) -> None:
    shares = []
    for misaligned in (0.0, 0.1, 0.5):
        pairs = kind(number=3, misaligned=misaligned).pairs(scenes, range(40), seed=0)
        shares.append(sum(bool(pair.true) for pair in pairs) / len(pairs))
    assert shares[0] == 1 and 0.35 < shares[1] < 0.9 and shares[2] < 0.2, shares


def test_a_wrong_statement_is_wrong_by_its_words(scenes: Scenes) -> None:
    """Whoever reads the caption sees it: the words differ from those of every true caption with the same facts."""
    pairs = Paraphrase(number=3, misaligned=1.0).pairs(scenes, range(40), seed=0)
    world = scenes.world
    for pair in pairs[:40]:
        words = str(pair.caption).split()
        shown = world.textures[pair.source]
        grounds = [
            ("plain", "blank", "bare"),
            ("stripes", "bands", "lines"),
            ("checks", "tiles", "grid"),
            ("dots", "spots", "specks"),
        ]
        named = [ground for ground, names in enumerate(grounds) if words[-1] in names]
        assert not named or named[0] != shown


def test_shifts_are_seen(scenes: Scenes) -> None:
    def words(pairs: list[AugmentedPair]) -> list[list[str]]:
        return [str(pair.caption).split() for pair in pairs]

    def share_rare(pairs: list[AugmentedPair]) -> float:
        from robustcli.data.scenes.captions import SYNONYMS

        rare = {word for line in SYNONYMS for word in line[1:]}
        return float(np.mean([word in rare for caption in words(pairs) for word in caption]))

    plain = Paraphrase(number=3).pairs(scenes, range(40), seed=0)
    assert share_rare(plain) < 0.02
    assert share_rare(Paraphrase(number=3, shift={"words": 0.5}).pairs(scenes, range(40), seed=0)) > 0.2
    long = Paraphrase(number=3, shift={"lengths": 1.0}).pairs(scenes, range(40), seed=0)
    assert np.mean([len(caption) for caption in words(long)]) > 1.4 * np.mean(
        [len(caption) for caption in words(plain)]
    )
    assert all(pair.true for pair in long)

    def spread(**shift: float) -> float:
        pairs = Redraw(number=2, shift=shift).pairs(scenes, range(20), seed=0)
        return float(np.mean([pair.image.std() for pair in pairs if pair.image is not None]))

    assert spread(contrast=0.6) < 0.7 * spread()
    assert spread(textures=1.0) != spread()


def test_the_own_captions_accumulate_in_one_order(scenes: Scenes, tmp_path: Path) -> None:
    one = FewerCaptions(scenes, 1)
    assert len(one.captions) == 40 and one.fingerprint != scenes.fingerprint
    pairs = OwnCaptions(number=2).pairs(one, range(40), seed=5)
    three = Augmented(one, [stored(tmp_path, one, pairs)])
    drawn = FewerCaptions(scenes, 3)
    for image in range(40):
        accumulated = sorted(three.captions[j] for j in torch.nonzero(three.owner == image).flatten().tolist())
        assert accumulated == sorted(drawn.captions[j] for j in drawn.captions_of()[image].tolist())
    # The relation is the exact one of the set for all of them, whichever way they came in.
    everything = torch.arange(len(three.captions))
    rows = torch.tensor([scenes.captions.index(caption) for caption in three.captions])
    exact = torch.from_numpy(truth(scenes.world, scenes.predicates[rows.numpy()]))
    assert torch.equal(three._relation(torch.arange(40), everything), exact)


def test_captions_without_a_cut_set_are_refused(scenes: Scenes) -> None:
    with pytest.raises(UserError, match="captions_per_image"):
        OwnCaptions(number=2).check(scenes)


def test_repetitions_are_left_out(scenes: Scenes) -> None:
    own = scenes.captions[0]
    pairs = [AugmentedPair(source=0, caption=text) for text in (own, "a hoop", "a hoop", "a loop")]
    pairs += [AugmentedPair(source=1, caption="a hoop")]
    assert [(pair.source, pair.caption) for pair in distinct(pairs, scenes)] == [
        (0, "a hoop"),
        (0, "a loop"),
        (1, "a hoop"),
    ]


def test_versions_inherit_the_relation_where_no_facts_are_told(scenes: Scenes, tmp_path: Path) -> None:
    pairs = [
        AugmentedPair(source=3, source_caption=int(scenes.captions_of()[3][2]), caption="some words"),
        AugmentedPair(source=4, caption="made of nothing"),
        AugmentedPair(source=5, image=np.zeros((32, 32, 3), np.uint8)),
    ]
    data = Augmented(scenes, [stored(tmp_path, scenes, pairs)])
    m = len(scenes.captions)
    images = torch.arange(40)
    column = data.relevance(images, torch.tensor([m]))[:, 0]
    assert torch.equal(column, scenes.relevance(images, scenes.captions_of()[3][2:3])[:, 0])
    assert data.relevance(images, torch.tensor([m + 1]))[:, 0].nonzero().flatten().tolist() == [4]
    row = data.relevance(torch.tensor([40]), torch.arange(m))[0]
    assert torch.equal(row, scenes.relevance(torch.tensor([5]), torch.arange(m))[0])
    own, augmented = data.pairs_of()
    assert augmented[3].tolist() == [[3, m]] and augmented[4].tolist() == [[4, m + 1]]
    assert augmented[5].tolist() == [[40, j] for j in scenes.captions_of()[5].tolist()]
    assert len(own) == len(augmented) == 40 and not len(augmented[6])


def test_a_version_of_a_kept_caption_inherits_the_relation_of_that_one(scenes: Scenes, tmp_path: Path) -> None:
    one = FewerCaptions(scenes, 1)
    pairs = [AugmentedPair(source=row, source_caption=row, caption=f"words {row}") for row in range(40)]
    data = Augmented(one, [stored(tmp_path, one, pairs)])
    images = torch.arange(40)
    kept, new = torch.arange(40), 40 + torch.arange(40)
    assert torch.equal(data.relevance(images, new), data.relevance(images, kept))
    assert torch.equal(data.relevance(images, kept), scenes.relevance(images, one.rows))


def test_a_caption_is_true_of_all_images_that_have_its_text_where_the_set_says_so(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [AugmentedPair(source=row, caption="made of nothing") for row in (4, 6)]
    pairs += [AugmentedPair(source=7, caption=scenes.captions[0]), AugmentedPair(source=8, caption="alone")]
    place, new = stored(tmp_path, scenes, pairs), len(scenes.captions) + torch.arange(4)
    assert Augmented(scenes, [place]).relevance(torch.arange(9), new)[:, 0].nonzero().flatten().tolist() == [4]
    monkeypatch.setattr(scenes, "text_decides", True)
    block = Augmented(scenes, [place]).relevance(torch.arange(9), torch.cat([new, torch.tensor([0])]))
    assert block[:, 0].nonzero().flatten().tolist() == block[:, 1].nonzero().flatten().tolist() == [4, 6]
    assert bool(block[[0, 7], 2].all()) and torch.equal(block[:, 2], block[:, 4])
    assert block[:, 3].nonzero().flatten().tolist() == [8]


def test_images_of_all_row_groups_have_numbers_of_their_own(scenes: Scenes, tmp_path: Path) -> None:
    """The cache of decoded images tells two of equal size apart by them."""
    image = np.zeros((2, 2, 3), np.uint8)
    pairs = [AugmentedPair(source=row % 40, image=image) for row in range(600)]
    blobs = [pair.image for pair in read_pairs(stored(tmp_path, scenes, pairs))]
    assert len({(blob.path, blob.offset) for blob in blobs if blob is not None}) == 600
    assert blobs[599] is not None and blobs[599].read() == blobs[0].read()  # type: ignore[union-attr]


def test_a_directory_of_another_set_or_unfinished_is_refused(scenes: Scenes, tmp_path: Path) -> None:
    place = stored(tmp_path, scenes, Paraphrase(number=1).pairs(scenes, range(4), seed=0))
    with pytest.raises(UserError, match="another set"):
        Augmented(FewerCaptions(scenes, 1), [place])
    (place / "DONE").unlink()
    with pytest.raises(UserError, match=r"not finished.*resume="):
        Augmented(scenes, [place])
    with pytest.raises(UserError, match="no directory of"):
        Augmented(scenes, [tmp_path / "absent"])


def test_a_damaged_shard_is_one_sentence(scenes: Scenes, tmp_path: Path) -> None:
    place = stored(tmp_path, scenes, Paraphrase(number=1).pairs(scenes, range(4), seed=0))
    shard = shard_path(place, 0)
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(place)


def test_the_first_so_many_of_an_image_enter(scenes: Scenes, tmp_path: Path) -> None:
    place = stored(tmp_path, scenes, Paraphrase(number=4).pairs(scenes, range(40), seed=0))
    _, augmented = Augmented(scenes, [place], number=2).pairs_of()
    assert max(map(len, augmented)) == 2
    _, twice = Augmented(scenes, [place, place]).pairs_of()
    assert max(map(len, twice)) == 8, "several directories add up"
