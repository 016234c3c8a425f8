"""Measures of augmented pairs: what is spoiled on purpose measures as spoiled, and equal versions as equal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from robustcli.data import Scenes
from robustcli.data.augment import Augmented, AugmentedPair, Augmenter, FewerCaptions, Paraphrase, Redraw
from robustcli.data.augment.shards import shard_path, write_shard
from robustcli.data.base import ImageTextData
from robustcli.evaluation.augmentation import QualityEvaluator, _percentiles
from robustcli.evaluation.caption_measures import CaptionMeasures, mean_figure
from robustcli.models import DualEncoder, load_dual
from robustcli.models.tokenizer import split_words

Measure = Callable[[Augmenter | list[AugmentedPair]], dict[str, Any]]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(split="train", train=60)


@pytest.fixture(scope="module")
def reference() -> DualEncoder:
    return load_dual({"_target_": "robustcli.models.tiny"}, "shipped", vocabulary=lambda: (), seed=0).eval()


def evaluator(data: ImageTextData, reference: DualEncoder, items: int = 60) -> QualityEvaluator:
    return QualityEvaluator(data, reference, items=items, batch_size=32, resamples=50, seed=0)


def augmented(place: Path, data: ImageTextData, pairs: list[AugmentedPair]) -> Augmented:
    places = {row: at for rows in data.captions_of() for at, row in enumerate(rows.tolist())}
    write_shard(shard_path(place, 0), pairs, data.image_ids, places, {"method": "test", "parameters": "{}"})
    manifest = {"command": "augment", "data": {data.split: data.provenance()}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "DONE").touch()
    return Augmented(data, [place])


@pytest.fixture
def measure(scenes: Scenes, reference: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    def figures(made: Augmenter | list[AugmentedPair]) -> dict[str, Any]:
        pairs = made if isinstance(made, list) else made.pairs(scenes, range(60), seed=0)
        quality = evaluator(scenes, reference).measure(augmented(tmp_path_factory.mktemp("made"), scenes, pairs))
        assert len(quality.figures) == 1
        row: dict[str, Any] = quality.figures.to_dict("records")[0]  # type: ignore[assignment]
        return row

    return figures


@pytest.mark.parametrize("kind", [Paraphrase, Redraw])
def test_wrong_statements_are_less_aligned(measure: Measure, kind: type[Paraphrase] | type[Redraw]) -> None:
    right, wrong = measure(kind(number=3)), measure(kind(number=3, misaligned=0.5))
    assert right["true_share"] == 1 and wrong["true_share"] < 0.3
    for name in ("alignment", "alignment_ratio", "percentile"):
        assert wrong[f"{name}_high"] < right[f"{name}_low"], name
    # Not the very same images: one of few sentences may have no new one.
    assert right["alignment_original"] == pytest.approx(wrong["alignment_original"], rel=0.02)
    assert right["percentile_original"] > 0.95
    assert right["alignment_difference"] == pytest.approx(right["alignment"] - right["alignment_original"])
    assert right["alignment_ratio"] == pytest.approx(right["alignment"] / right["alignment_original"])


def test_rare_words_are_a_larger_gap_of_the_vocabulary(measure: Measure) -> None:
    plain, rare = measure(Paraphrase(number=3)), measure(Paraphrase(number=3, shift={"words": 0.5}))
    assert rare["new_word_share_low"] > plain["new_word_share"]
    assert rare["unigram_divergence_low"] > plain["unigram_divergence_high"]


def test_equal_versions_have_no_diversity_and_no_gap(scenes: Scenes, measure: Measure) -> None:
    copies = [
        AugmentedPair(source=row, source_caption=6 * row + caption, caption=scenes.captions[6 * row + caption])
        for row in range(60)
        for caption in range(6)
    ]
    figures = measure(copies)
    assert figures["alignment_ratio"] == pytest.approx(1) and figures["alignment_difference"] == pytest.approx(0)
    assert figures["percentile"] == pytest.approx(figures["percentile_original"])
    assert figures["diversity_to_original"] == pytest.approx(0, abs=1e-6) and figures["edits"] == 0
    for name in ("frechet", "gap", "mmd", "words_difference", "new_word_share", "unigram_divergence"):
        assert figures[name] == pytest.approx(0, abs=1e-6), name
    once = [AugmentedPair(source=row, source_caption=6 * row, caption=scenes.captions[6 * row]) for row in range(60)]
    same = measure([pair for pair in once for _ in range(3)])
    assert same["diversity"] == pytest.approx(0, abs=1e-6) and same["diversity_among"] == pytest.approx(0, abs=1e-6)
    assert same["per_item"] == 3


def test_diversity_is_the_mean_over_all_couples(scenes: Scenes, reference: DualEncoder, tmp_path: Path) -> None:
    texts = ["a red circle on dots", "a blue square", "something green"]
    pairs = [AugmentedPair(source=4, source_caption=25, caption=text) for text in texts]
    made = augmented(tmp_path, scenes, pairs)
    figures = evaluator(scenes, reference).measure(made).figures.iloc[0]
    with torch.no_grad():
        features = reference.encode_text(reference.tokenize([*texts, scenes.captions[25]]))
    apart = 1 - features @ features.T
    among = [float(apart[i, j]) for i in range(3) for j in range(i)]
    original = [float(apart[i, 3]) for i in range(3)]
    assert figures["diversity_among"] == pytest.approx(np.mean(among), abs=1e-5)
    assert figures["diversity_to_original"] == pytest.approx(np.mean(original), abs=1e-5)
    assert figures["diversity"] == pytest.approx(np.mean(among + original), abs=1e-5)
    assert pd.isna(figures.get("percentile")), "one image has no other to stand above"
    assert pd.isna(figures["mmd"]) and "diversity_ratio" not in figures.dropna()


def test_new_images_are_measured_among_images(measure: Measure) -> None:
    figures = measure(Redraw(number=2))
    assert figures["side"] == "images" and figures["alignment_ratio"] > 0.9 and figures["diversity"] > 0
    assert not any(name in figures for name in ("words", "distinct_1", "edits"))


def test_an_image_of_all_captions_is_aligned_with_their_mean(
    scenes: Scenes, reference: DualEncoder, tmp_path: Path
) -> None:
    pixels = (scenes.images(torch.arange(60)) * 255).byte().permute(0, 2, 3, 1).numpy()
    pairs = [AugmentedPair(source=row, image=pixels[row]) for row in range(60)]
    quality = evaluator(scenes, reference).measure(augmented(tmp_path, scenes, pairs))
    figures = quality.figures.iloc[0]
    assert figures["alignment"] == pytest.approx(figures["alignment_original"], abs=1e-5)
    assert figures["diversity"] == pytest.approx(0, abs=1e-5) and figures["gap"] == pytest.approx(0, abs=1e-4)
    assert "true_share" not in figures.dropna() and len(quality.records) == 60


def test_a_directory_of_captions_and_images_has_a_row_for_each(
    scenes: Scenes, reference: DualEncoder, tmp_path: Path
) -> None:
    pixels = (scenes.images(torch.arange(60)) * 255).byte().permute(0, 2, 3, 1).numpy()
    pairs = [
        each
        for row in range(60)
        for each in (
            AugmentedPair(source=row, source_caption=6 * row, caption="a blue square"),
            AugmentedPair(source=row, source_caption=6 * row, image=pixels[row]),
        )
    ]
    # Fewer items than there are pairs: what is left out must not shift the images of those that stay.
    quality = evaluator(scenes, reference, items=20).measure(augmented(tmp_path, scenes, pairs))
    figures = quality.figures.set_index("side")
    assert figures["pairs"].to_dict() == {"captions": 20, "images": 20}
    assert figures.loc["images", "diversity"] == pytest.approx(0, abs=1e-5)
    assert figures.loc["captions", "diversity"] > 0.1
    assert pd.isna(figures.loc["images", "edits"]) and figures.loc["captions", "edits"] > 0


def test_the_items_are_capped_and_the_same_for_each(scenes: Scenes, reference: DualEncoder, tmp_path: Path) -> None:
    judge, seen = evaluator(scenes, reference, items=10), []
    for name, text in (("a", "a red circle"), ("b", "a blue square on dots")):
        pairs = [AugmentedPair(source=row, source_caption=6 * row, caption=text) for row in range(60)]
        (tmp_path / name).mkdir()
        quality = judge.measure(augmented(tmp_path / name, scenes, pairs))
        seen.append(set(quality.records["image_id"]))
        assert quality.figures["items"].tolist() == [10]
    assert seen[0] == seen[1] != set(scenes.image_ids[:10])


def test_fewer_captions_compare_with_those_that_are_left(
    reference: DualEncoder, scenes: Scenes, tmp_path: Path
) -> None:
    data = FewerCaptions(scenes, 1)
    pairs = [AugmentedPair(source=row, source_caption=row, caption=scenes.captions[6 * row]) for row in range(60)]
    figures = evaluator(data, reference).measure(augmented(tmp_path, data, pairs)).figures.iloc[0]
    own = np.mean([len(split_words(caption)) for caption in data.captions])
    assert figures["words"] - figures["words_difference"] == pytest.approx(own)


def test_percentiles_leave_out_the_own_image_and_count_ties_half() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    captions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    item = torch.tensor([0, 0, 2])
    found = _percentiles(gallery[item], captions, item, gallery)
    assert found.tolist() == pytest.approx([1.0, 0.0, 2.5 / 3])


def test_the_words_of_captions_by_hand() -> None:
    own = [["a", "red", "dog"], ["two", "cats"]]
    new = [["a", "red", "dog"], ["a", "dog"], ["three", "cats", "sleep"]]
    measures = CaptionMeasures(
        new=new,
        item=torch.tensor([0, 0, 1]),
        own=own,
        own_item=torch.tensor([0, 1]),
        sources=[[0], [0, 1], [1]],
        vocabulary={"a", "red", "dog", "two", "cats"},
        self_bleu=None,
        resamples=20,
        seed=0,
    )
    assert measures.edits().tolist() == [0, 1, 2]
    figures = measures.figures()
    assert figures["edits"] == pytest.approx((0.5 + 2) / 2)
    assert figures["words"] == pytest.approx((2.5 + 3) / 2)
    assert figures["words_difference"] == pytest.approx((2.5 - 3 + 3 - 2) / 2)
    assert figures["new_word_share"] == pytest.approx(2 / 8)
    assert figures["distinct_1"] == pytest.approx((3 / 5 + 1) / 2)
    assert "self_bleu" not in figures


def test_one_edit_in_every_caption_is_no_proportion() -> None:
    ones = torch.ones(30, dtype=torch.float64)
    assert mean_figure("edits", ones, resamples=20, seed=0) == {"edits": 1, "edits_low": 1, "edits_high": 1}
    share = mean_figure("true_share", ones, resamples=20, seed=0, share=True)
    assert share["true_share_high"] == 1 and 0.8 < float(share["true_share_low"] or 0) < 0.95
