"""Judging on a whole gallery: order, independence of the chunks, honest treatment of broken encoders."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.attacks import PGD, SepAttack, SynonymTable, WordSubstitution
from robustcli.attacks.core.oracle import Meter
from robustcli.attacks.core.target import Target
from robustcli.data import ImageTextData, Scenes
from robustcli.data.scenes import synonym_table
from robustcli.evaluation import Attacked, RetrievalJudge, summarise
from robustcli.models import DualEncoder


class Scattered(ImageTextData):
    """The scenes with their captions in an order of their own, as a table of captions may list them."""

    name, split, fingerprint = "scattered", "test", "0"

    def __init__(self, data: Scenes) -> None:
        self.inner = data
        self.order = torch.randperm(len(data.captions), generator=torch.Generator().manual_seed(0))
        self.image_ids = data.image_ids
        self.captions = [data.captions[j] for j in self.order.tolist()]
        self.owner = data.owner[self.order]

    def images(self, indices: Tensor) -> Tensor:
        return self.inner.images(indices)

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return self.inner.relevance(images, self.order[captions])


def sep(eps: str = "8/255") -> SepAttack:
    candidates = SynonymTable({word: list(others) for word, others in synonym_table().items()})
    return SepAttack(image=PGD(eps=eps, steps=3), text=WordSubstitution(candidates=candidates))


def test_scattered_captions_come_back_in_their_own_places(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = RetrievalJudge(Scattered(scenes), batch_size=7, limit=20)
    records = judge.records(small_model, "m", "sep", sep())
    captions = records[records["direction"] == "text_to_image"]["caption"]
    for before, after in zip(judge.captions, captions, strict=True):
        assert sum(a != b for a, b in zip(before.split(), after.split(), strict=True)) <= 1
    plain = RetrievalJudge(scenes, batch_size=20, limit=20).records(small_model, "m", "sep", sep())
    scattered = judge.records(small_model, "m", "sep", sep())
    for direction in ("image_to_text", "text_to_image"):
        hits = [t[t["direction"] == direction]["adversarial_rank"].sort_values().tolist() for t in (plain, scattered)]
        assert hits[0] == hits[1]


def test_records_do_not_depend_on_the_chunks(scenes: Scenes, small_model: DualEncoder) -> None:
    tables = [
        RetrievalJudge(scenes, batch_size=size, limit=24).records(small_model, "m", "sep", sep()) for size in (24, 5)
    ]
    same = (tables[0]["adversarial_rank"] == tables[1]["adversarial_rank"]).mean()
    assert same > 0.98, "other chunks may round otherwise, and nothing else"


def test_limit_keeps_the_captions_of_the_kept_images_only(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = RetrievalJudge(Scattered(scenes), batch_size=8, limit=10)
    assert len(judge.captions) == 60 and int(judge.owner.max()) == 9
    assert judge.relevance.shape == (10, 60) and bool(judge.relevance[judge.owner, torch.arange(60)].all())


def test_an_attack_lowers_the_recall_and_stays_within_its_budget(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = RetrievalJudge(scenes, batch_size=24, limit=24)
    records = judge.records(small_model, "m", "sep", sep())
    assert records["norm"].max() <= 8 / 255 * (1 + 1e-6) and records["edits"].max() <= 1
    clean, hostile = records["clean_rank"].astype(float).mean(), records["adversarial_rank"].astype(float).mean()
    assert hostile > clean * 1.2


def test_a_constant_encoder_scores_chance_and_nan_is_an_error(
    scenes: Scenes, small_model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = RetrievalJudge(scenes, batch_size=24)
    monkeypatch.setattr(small_model, "fingerprint", lambda: "constant")
    monkeypatch.setattr(small_model, "encode_image", lambda images: torch.ones(len(images), 4) / 2)
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.ones(len(tokens), 4) / 2)
    table = summarise(judge.records(small_model, "m", "clean", None), resamples=20, seed=0)
    recall = table.set_index("direction")["recall_at_1"]
    assert recall["image_to_text"] <= 3 * judge.chance()["image_to_text"] + 0.05
    monkeypatch.setattr(small_model, "fingerprint", lambda: "broken")
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.full((len(tokens), 4), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        judge.records(small_model, "m", "clean", None)


def test_a_killed_attack_goes_on_at_the_chunks_that_are_left(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = RetrievalJudge(scenes, batch_size=7, limit=24)
    parts: dict[str, pd.DataFrame] = {}
    attacked: list[int] = []

    def keep(found: Attacked) -> None:
        attacked.extend(found.rows.tolist())

    def part(name: str, compute: Callable[[], pd.DataFrame], most: int = 99) -> pd.DataFrame:
        if name not in parts:
            if len(parts) == most:
                raise KeyboardInterrupt
            parts[name] = compute()
        return parts[name]

    with pytest.raises(KeyboardInterrupt):
        judge.records(small_model, "m", "sep", sep(), keep=keep, part=partial(part, most=2))
    again = judge.records(small_model, "m", "sep", sep(), keep=keep, part=part)
    assert sorted(attacked) == list(range(24)), "no image is attacked twice"
    pd.testing.assert_frame_equal(again, judge.records(small_model, "m", "sep", sep()))


@pytest.mark.parametrize("attacker", ["query", "item", "both"])
def test_what_the_attacker_may_edit_decides_the_gallery(
    attacker: str, scenes: Scenes, small_model: DualEncoder
) -> None:
    """Against a ranking by hand: one pair at a time is attacked, on one side, and all the rest is clean."""
    judge = RetrievalJudge(scenes, batch_size=24, limit=24, attacker=attacker)
    records = judge.records(small_model, "m", "sep", sep())
    pairs, gallery = judge.pairs(small_model, judge.image_rows)
    found = sep()(small_model, pairs, gallery)
    images, texts = judge.features(small_model)
    with torch.no_grad():
        bad_images = small_model.encode_image(found.images)
        bad_texts = small_model.encode_text(small_model.tokenize(found.captions))
    query, item = attacker != "item", attacker != "query"
    for i in range(24):
        gallery_texts = torch.where((pairs.owner == i)[:, None], bad_texts, texts) if item else texts
        scores = gallery_texts @ (bad_images[i] if query else images[i])
        assert _agrees(records["adversarial_rank"][i], scores, judge.relevance[i])
    for j in range(0, len(texts), 7):
        row = int(pairs.owner[j])
        gallery_images = images.clone()
        if item:
            gallery_images[row] = bad_images[row]
        scores = gallery_images @ (bad_texts[j] if query else texts[j])
        assert _agrees(records["adversarial_rank"][24 + j], scores, judge.relevance[:, j])


class _Ragged(SepAttack):
    """As many variants as the first image of the chunk has a number, the first of them the strongest."""

    def alternatives(self, target: Target, meter: Meter) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
        found = self.find(target, meter)
        count = 1 + int(target.pairs.image_ids[0]) // 10
        clean = (target.pairs.images.clone(), target.pairs.captions)
        return {f"v{number}": clean if number else found for number in range(count)}


def test_chunks_may_have_more_variants_than_others(scenes: Scenes, small_model: DualEncoder) -> None:
    judge, plain = RetrievalJudge(scenes, batch_size=10, limit=24), sep()
    records = judge.records(small_model, "m", "x", _Ragged(image=plain.image, text=plain.text))
    single = judge.records(small_model, "m", "x", plain)
    assert records["variant"].nunique() <= 3
    assert (records["adversarial_rank"] >= single["adversarial_rank"]).all(), "the worst variant of each query"
    images = records["direction"] == "image_to_text"
    assert records.loc[images, "gradients"].tolist() == single.loc[images, "gradients"].tolist()


def _agrees(rank: int, scores: Tensor, true: Tensor) -> bool:
    """Ties within the resolution of a score may fall either way."""
    best = scores[true].max()
    return 1 + int((scores > best + 1e-5).sum()) <= rank <= int((scores > best - 1e-5).sum())
