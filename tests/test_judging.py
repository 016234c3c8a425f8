"""Judging on a whole gallery: order, independence of the chunks, honest treatment of broken encoders."""

import pytest
import torch
from torch import Tensor

from robustcli.attacks import PGD, SepAttack, SynonymTable, WordSubstitution
from robustcli.data import ImageTextData, Scenes
from robustcli.data.scenes import synonym_table
from robustcli.judging import Judge, summarise
from robustcli.metrics import chance_recall
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
    judge = Judge(Scattered(scenes), batch_size=7, limit=20)
    attacked = judge.attack(small_model, sep())
    for before, after in zip(judge.captions, attacked.captions, strict=True):
        assert sum(a != b for a, b in zip(before.split(), after.split(), strict=True)) <= 1
    plain = Judge(scenes, batch_size=20, limit=20).records(small_model, "m", "sep", sep())
    scattered = judge.records(small_model, "m", "sep", sep())
    for direction in ("image_to_text", "text_to_image"):
        hits = [t[t["direction"] == direction]["adversarial_rank"].sort_values().tolist() for t in (plain, scattered)]
        assert hits[0] == hits[1]


def test_records_do_not_depend_on_the_chunks(scenes: Scenes, small_model: DualEncoder) -> None:
    tables = [Judge(scenes, batch_size=size, limit=24).records(small_model, "m", "sep", sep()) for size in (24, 5)]
    same = (tables[0]["adversarial_rank"] == tables[1]["adversarial_rank"]).mean()
    assert same > 0.98, "other chunks may round otherwise, and nothing else"


def test_limit_keeps_the_captions_of_the_kept_images_only(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = Judge(Scattered(scenes), batch_size=8, limit=10)
    assert len(judge.captions) == 60 and int(judge.owner.max()) == 9
    assert judge.relevance.shape == (10, 60) and bool(judge.relevance[judge.owner, torch.arange(60)].all())


def test_an_attack_lowers_the_recall_and_stays_within_its_budget(scenes: Scenes, small_model: DualEncoder) -> None:
    judge = Judge(scenes, batch_size=24, limit=24)
    records = judge.records(small_model, "m", "sep", sep())
    assert records["norm"].max() <= 8 / 255 * (1 + 1e-6) and records["edits"].max() <= 1
    clean, hostile = records["clean_rank"].astype(float).mean(), records["adversarial_rank"].astype(float).mean()
    assert hostile > clean * 1.2


def test_a_constant_encoder_scores_chance_and_nan_is_an_error(
    scenes: Scenes, small_model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(scenes, batch_size=24)
    monkeypatch.setattr(small_model, "fingerprint", lambda: "constant")
    monkeypatch.setattr(small_model, "encode_image", lambda images: torch.ones(len(images), 4) / 2)
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.ones(len(tokens), 4) / 2)
    table = summarise(judge.records(small_model, "m", "clean", None), resamples=20, seed=0)
    recall = table.set_index("direction")["recall_at_1"]
    assert recall["image_to_text"] <= 3 * chance_recall(judge.relevance, 1).image_to_text + 0.05
    monkeypatch.setattr(small_model, "fingerprint", lambda: "broken")
    monkeypatch.setattr(small_model, "encode_text", lambda tokens: torch.full((len(tokens), 4), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        judge.records(small_model, "m", "clean", None)
