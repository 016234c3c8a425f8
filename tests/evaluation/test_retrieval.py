"""Judging on a whole gallery: order, independence of the chunks, honest treatment of broken encoders."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustcli.attacks import (
    APGD,
    PGD,
    ImageAttack,
    RetrievalAttack,
    SepAttack,
    SynonymTable,
    TextAttack,
    ThreatModel,
    WordSubstitution,
)
from robustcli.attacks.adaptive.averaging import EncoderWrapper
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.pairs import Alternative
from robustcli.attacks.core.target import Target
from robustcli.data import ImageTextData, KarpathyJSON, Scenes
from robustcli.data.scenes import synonym_table
from robustcli.evaluation import Attacked, AttackRun, RetrievalEvaluator
from robustcli.evaluation.aggregate import summarise
from robustcli.metrics import ranking
from robustcli.models import DualEncoder

from ..attacks.conftest import attack_of, family, names_of


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


THREAT = ThreatModel(eps="8/255", words=1)


def synonyms() -> SynonymTable:
    return SynonymTable({word: list(others) for word, others in synonym_table().items()})


def sep() -> SepAttack:
    return SepAttack(image=PGD(steps=3), text=WordSubstitution(candidates=synonyms()))


def evaluator(
    data: ImageTextData, *, batch_size: int = 24, limit: int | None = 24, threat: ThreatModel = THREAT
) -> RetrievalEvaluator:
    return RetrievalEvaluator(data, threat, batch_size=batch_size, limit=limit)


def run_of(judge: RetrievalEvaluator, model: DualEncoder, attack: RetrievalAttack) -> AttackRun:
    entry = judge.entry("m", model)
    return AttackRun(name="sep", attack=attack, threat=judge.threat, access="adaptive", victim=model, entries=(entry,))


def attacked_by(judge: RetrievalEvaluator, model: DualEncoder, attack: RetrievalAttack) -> pd.DataFrame:
    return judge.attacked(run_of(judge, model, attack))


def test_scattered_captions_come_back_in_their_own_places(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = evaluator(Scattered(scenes), batch_size=7, limit=20)
    records = attacked_by(judge, small_model, sep())
    captions = records[records["direction"] == "text_to_image"]["caption"]
    for before, after in zip(judge.captions, captions, strict=True):
        assert sum(a != b for a, b in zip(before.split(), after.split(), strict=True)) <= 1
    plain = attacked_by(evaluator(scenes, batch_size=20, limit=20), small_model, sep())
    scattered = attacked_by(judge, small_model, sep())
    for direction in ("image_to_text", "text_to_image"):
        hits = [t[t["direction"] == direction]["adversarial_rank"].sort_values().tolist() for t in (plain, scattered)]
        assert hits[0] == hits[1]


def of_pairs(name: str, threat: ThreatModel) -> RetrievalAttack:
    """The attack of a row of the registry, on pairs, cheap enough for a test."""
    kind = family(name)
    settings = {"candidates": synonyms()} if getattr(kind, "needs_candidates", False) else {}
    if issubclass(kind, RetrievalAttack):
        image = {"mat": PGD(steps=1, loss="infonce"), "retrieval_autoattack": APGD(steps=5)}.get(name, PGD(steps=3))
        attack: RetrievalAttack = attack_of(name, image=image, text=WordSubstitution(candidates=synonyms()))
        return attack
    one = attack_of(name, **settings)
    return SepAttack(image=one) if isinstance(one, ImageAttack) else SepAttack(text=one)


@pytest.mark.parametrize("name", sorted({*names_of(RetrievalAttack), *names_of(ImageAttack), *names_of(TextAttack)}))
def test_no_record_depends_on_the_batch(name: str, scenes: Scenes, small_model: DualEncoder) -> None:
    unit = getattr(family(name), "unit", "words")
    threat = ThreatModel(eps="8/255", **{unit: 1})
    tables = [
        attacked_by(evaluator(scenes, batch_size=size, limit=18, threat=threat), small_model, of_pairs(name, threat))
        for size in (64, 16, 7, 1)
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_what_is_done_to_the_inputs_is_told(scenes: Scenes, small_model: DualEncoder, tmp_path: Path) -> None:
    assert evaluator(scenes).inputs([small_model]) == []
    for number in range(4):
        Image.new("RGB", (24, 24), (60 * number, 9, 9)).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{n}.png", "caption": ["a red ball" if n < 2 else f"place {n}", "word " * 30]} for n in range(4)]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    told = {}
    for same in ("distinct", "match"):
        data = KarpathyJSON(tmp_path / "test.json", tmp_path, split="test", image_size=24, same_text=same)  # type: ignore[arg-type]
        told[same] = evaluator(data).inputs([small_model, small_model])
    resized, cut, ceiling = told["distinct"]
    assert resized == "The model resizes images from 24 x 24 to 32 x 32 pixels."
    assert cut == "4 of 8 captions are cut at the context length of 26 tokens."
    # Images 0 and 1 share both of their texts, 2 and 3 one: "word word ..." finds one of four images.
    assert ceiling == (
        "6 of 8 captions stand word for word under several images: a faultless model would reach at most 75.0 / 50.0 % "
        "recall@1."
    )
    assert told["match"] == [resized, cut]


def test_limit_keeps_the_captions_of_the_kept_images_only(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = evaluator(Scattered(scenes), batch_size=8, limit=10)
    assert len(judge.captions) == 60 and int(judge.owner.max()) == 9
    assert judge.relevance.shape == (10, 60) and bool(judge.relevance.matrix()[judge.owner, torch.arange(60)].all())


def test_an_attack_lowers_the_recall_and_stays_within_its_budget(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = evaluator(scenes)
    records = attacked_by(judge, small_model, sep())
    assert records["norm"].max() <= 8 / 255 * (1 + 1e-6) and records["edits"].max() <= 1
    clean, hostile = records["clean_rank"].astype(float).mean(), records["adversarial_rank"].astype(float).mean()
    assert hostile > clean * 1.2


def test_a_constant_encoder_scores_chance_and_nan_is_an_error(
    scenes: Scenes, small_model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = evaluator(scenes, limit=None)
    monkeypatch.setattr(small_model, "fingerprint", lambda: "constant")
    monkeypatch.setattr(small_model, "encode_image", lambda images: torch.ones(len(images), 4) / 2)
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.ones(len(tokens), 4) / 2)
    entry = judge.entry("m", small_model)
    table = summarise(judge.clean(entry), resamples=20, seed=0)
    recall = table.set_index("direction")["recall_at_1"]
    assert recall["image_to_text"] <= 3 * judge.chance()["image_to_text"] + 0.05
    monkeypatch.setattr(small_model, "fingerprint", lambda: "broken")
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.full((len(tokens), 4), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        judge.clean(entry)


def test_a_killed_attack_goes_on_at_the_chunks_that_are_left(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = evaluator(scenes, batch_size=7)
    parts: dict[str, pd.DataFrame] = {}
    attacked: list[int] = []

    def keep(run: AttackRun, found: Attacked) -> None:
        attacked.extend(found.rows.tolist())

    def part(name: str, compute: Callable[[], pd.DataFrame], most: int = 99) -> pd.DataFrame:
        if name not in parts:
            if len(parts) == most:
                raise KeyboardInterrupt
            parts[name] = compute()
        return parts[name]

    with pytest.raises(KeyboardInterrupt):
        judge.attacked(run_of(judge, small_model, sep()), keep=keep, part=partial(part, most=2))
    again = judge.attacked(run_of(judge, small_model, sep()), keep=keep, part=part)
    assert sorted(attacked) == list(range(24)), "no image is attacked twice"
    pd.testing.assert_frame_equal(again, attacked_by(judge, small_model, sep()))


@pytest.mark.parametrize("attacker", ["query", "item", "both"])
def test_what_the_attacker_may_edit_decides_the_gallery(
    attacker: str, scenes: Scenes, small_model: DualEncoder
) -> None:
    """Against a ranking by hand: one pair at a time is attacked, on one side, and all the rest is clean."""
    judge = evaluator(scenes, threat=replace(THREAT, edits=attacker))
    records = attacked_by(judge, small_model, sep())
    pairs, gallery = judge.pairs(small_model, judge.image_rows)
    found = sep()(small_model, pairs, gallery, judge.threat)
    images, texts = judge.features(small_model)
    with torch.no_grad():
        bad_images = small_model.encode_image(found.images)
        bad_texts = small_model.encode_text(small_model.tokenize(found.captions))
    query, item = attacker != "item", attacker != "query"
    for i in range(24):
        gallery_texts = torch.where((pairs.owner == i)[:, None], bad_texts, texts) if item else texts
        scores = gallery_texts @ (bad_images[i] if query else images[i])
        assert _agrees(records["adversarial_rank"][i], scores, judge.relevance.matrix()[i])
    for j in range(0, len(texts), 7):
        row = int(pairs.owner[j])
        gallery_images = images.clone()
        if item:
            gallery_images[row] = bad_images[row]
        scores = gallery_images @ (bad_texts[j] if query else texts[j])
        assert _agrees(records["adversarial_rank"][24 + j], scores, judge.relevance.matrix()[:, j])


class _Ragged(SepAttack):
    """As many variants as the first image of the chunk has a number, the first of them the strongest."""

    def alternatives(self, target: Target, counter: QueryCounter) -> dict[str, Alternative]:
        found = Alternative(*self.search(target, counter))
        count = 1 + int(target.pairs.image_ids[0]) // 10
        clean = Alternative(target.pairs.images.clone(), target.pairs.captions)
        return {f"v{number}": clean if number else found for number in range(count)}


def test_chunks_may_have_more_variants_than_others(scenes: Scenes, small_model: DualEncoder) -> None:
    judge, plain = evaluator(scenes, batch_size=10), sep()
    records = attacked_by(judge, small_model, _Ragged(image=plain.image, text=plain.text))
    single = attacked_by(judge, small_model, plain)
    assert records["variant"].nunique() <= 3
    assert (records["adversarial_rank"] >= single["adversarial_rank"]).all(), "the worst variant of each query"
    images = records["direction"] == "image_to_text"
    assert records.loc[images, "gradients"].tolist() == single.loc[images, "gradients"].tolist()


class _Credited(SepAttack):
    """Two variants: clean, credited to nobody, and attacked, by two members."""

    def alternatives(self, target: Target, counter: QueryCounter) -> dict[str, Alternative]:
        images, captions = self.search(target, counter)
        clean = Alternative(
            target.pairs.images.clone(), target.pairs.captions, ("",) * len(images), ("",) * len(captions)
        )
        members = tuple(f"image {i}" for i in target.pairs.image_ids.tolist())
        texts = tuple(f"text {j}" for j in target.pairs.caption_ids.tolist())
        return {"clean": clean, "attacked": Alternative(images, captions, members, texts)}


def test_a_record_names_the_member_of_its_worst_variant(scenes: Scenes, small_model: DualEncoder) -> None:
    judge, plain = evaluator(scenes, batch_size=10), sep()
    records = attacked_by(judge, small_model, _Credited(image=plain.image, text=plain.text))
    side = records["direction"].map({"image_to_text": "image", "text_to_image": "text"})
    rows = np.concatenate([judge.image_rows.numpy(), judge.caption_rows.numpy()]).astype(str)
    expected = (side + " " + rows).where(records["variant"] == "attacked", "")
    assert records["member"].tolist() == expected.tolist() and records["variant"].nunique() == 2
    assert set(attacked_by(judge, small_model, plain)["member"]) == {""}


def _agrees(rank: int, scores: Tensor, true: Tensor) -> bool:
    """Ties within the resolution of a score may fall either way."""
    best = scores[true].max()
    return 1 + int((scores > best + 1e-5).sum()) <= rank <= int((scores > best - 1e-5).sum())


class _Cheat(SepAttack):
    """An attack that takes what it computes for allowed: another image, or another caption."""

    def variants(self, *given, **rest):  # type: ignore[no-untyped-def]
        (found,) = super().variants(*given, **rest).values()
        if self.image is None:
            return {"": replace(found, captions=tuple(f"two words {caption}" for caption in found.captions))}
        return {"": replace(found, images=1 - found.images)}


@pytest.mark.parametrize(("side", "message"), [("image", r"eps is 0\.03"), ("text", "edits, 1 allowed")])
def test_a_result_beyond_the_threat_model_fails_the_run(
    side: str, message: str, scenes: Scenes, small_model: DualEncoder
) -> None:
    judge = evaluator(scenes, limit=4)
    with pytest.raises(RuntimeError, match=message):
        attacked_by(judge, small_model, _Cheat(**{side: getattr(sep(), side)}))


class _Liar(SepAttack):
    """An attack that reports the opposite of its success."""

    def variants(self, *given, **rest):  # type: ignore[no-untyped-def]
        return {
            name: replace(one, image_success=~one.image_success, caption_success=~one.caption_success)
            for name, one in super().variants(*given, **rest).items()
        }


def test_the_success_that_an_attack_reports_is_not_read(scenes: Scenes, small_model: DualEncoder) -> None:
    judge, plain = evaluator(scenes, limit=12), sep()
    lying = attacked_by(judge, small_model, _Liar(image=plain.image, text=plain.text))
    pd.testing.assert_frame_equal(lying, attacked_by(judge, small_model, plain))


def test_each_record_is_that_of_the_query_that_it_names(scenes: Scenes, small_model: DualEncoder) -> None:
    data = Scattered(scenes)
    judge = evaluator(data, batch_size=7, limit=20)
    records = attacked_by(judge, small_model, sep())
    images, captions = (table.set_index("query_id") for _, table in records.groupby("direction", sort=False))
    order, columns = torch.arange(20), torch.tensor([int(name) for name in captions.index])
    with torch.no_grad():
        of_images = small_model.encode_image(data.images(order))
        of_captions = small_model.encode_text(small_model.tokenize([data.captions[j] for j in columns.tolist()]))
    scores, true = of_images @ of_captions.T, data.relevance(order, columns)
    for i, name in enumerate(data.image_ids[:20]):
        assert images.loc[name, "image_id"] == name
        assert _agrees(images.loc[name, "clean_rank"], scores[i], true[i])
    for position, j in enumerate(columns.tolist()):
        record = captions.loc[str(j)]
        assert record["image_id"] == data.image_ids[int(data.owner[j])]
        assert _agrees(record["clean_rank"], scores[:, position], true[:, position])
        assert sum(a != b for a, b in zip(data.captions[j].split(), record["caption"].split(), strict=True)) <= 1


class _Noted(EncoderWrapper):
    """A dual encoder that notes what it draws for its images."""

    randomised = True

    def __init__(self, model: DualEncoder) -> None:
        super().__init__(model)
        self.fingerprint, self.drawn = model.fingerprint, list[float]()

    def encode_image(self, images: Tensor) -> Tensor:
        self.drawn += torch.rand(4).tolist()
        return super().encode_image(images)


def test_fresh_draws_are_none_of_the_attack_s(scenes: Scenes, small_model: DualEncoder) -> None:
    model = _Noted(small_model)
    judge = RetrievalEvaluator(scenes, THREAT, batch_size=6, limit=6, fresh=3)
    entry, (pairs, gallery) = judge.entry("m", model), judge.pairs(model, judge.image_rows)
    model.drawn = []
    SepAttack(image=PGD(steps=2))(model, pairs, gallery, judge.threat)
    attacked, model.drawn = set(model.drawn), []
    judge.clean(entry)
    assert attacked and model.drawn and attacked.isdisjoint(model.drawn)


class _OwnAlone(Scattered):
    """The scenes as a set that knows only which caption was written for which image."""

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return ImageTextData.relevance(self, images, captions)


def test_all_positives_of_a_query_are_judged_clean_and_attacked(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = evaluator(Scattered(scenes), batch_size=7, limit=20)
    assert judge.several and not evaluator(_OwnAlone(scenes), limit=20).several
    entry = judge.entry("m", small_model)
    clean, attacked = judge.clean(entry), attacked_by(judge, small_model, sep())
    images, captions = judge.features(small_model)
    expected = {
        "image_to_text": ranking(images, captions, judge.relevance),
        "text_to_image": ranking(captions, images, judge.relevance.T),
    }
    for direction, table in clean.groupby("direction"):
        found = expected[str(direction)]
        assert table["map_at_r"].tolist() == pytest.approx(found.map_at_r.tolist())
        assert table["r_precision"].tolist() == pytest.approx(found.r_precision.tolist())
        assert table["positives"].tolist() == found.positives.tolist()
    assert attacked["positives"].tolist() == clean["positives"].tolist()
    assert attacked["map_at_r"].mean() < clean["map_at_r"].mean()
    single = attacked[attacked["positives"] == 1]
    assert len(single) and single["map_at_r"].tolist() == single["mean"].tolist()
    summary = summarise(pd.concat([clean, attacked]), resamples=10, seed=0)
    for row in summary.to_dict("records"):
        assert row["map_at_r_low"] <= row["map_at_r"] <= row["map_at_r_high"]
        assert 0 <= row["r_precision_low"] <= row["r_precision"] <= row["r_precision_high"] <= 1
