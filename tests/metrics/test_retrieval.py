"""Recall against a brute-force oracle, ties, ragged captions, bad embeddings, chunk sizes."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from robustcli import metrics
from robustcli.metrics import Ranking, Ranks, Recall, attack_success_drop, attack_success_flip, recall_at_k
from robustcli.metrics import retrieval as module
from robustcli.utils.relevance import Relevance
from robustcli.utils.seeding import generator


def ranks(images: Tensor, texts: Tensor, true: Tensor, *, chunk: int | None = None) -> Ranks:
    return metrics.ranks(images, texts, Relevance.of_matrix(true), chunk=chunk)


def ranking(queries: Tensor, gallery: Tensor, true: Tensor, **settings: Any) -> Ranking:
    return metrics.ranking(queries, gallery, Relevance.of_matrix(true), **settings)


def first_true_rank(queries: Tensor, gallery: Tensor, true: Tensor, **settings: Any) -> Tensor:
    return metrics.first_true_rank(queries, gallery, Relevance.of_matrix(true), **settings)


def chance_recall(true: Tensor, k: int) -> Recall:
    return metrics.chance_recall(Relevance.of_matrix(true), k)


def same_text_ceiling(true: Tensor, captions: list[str]) -> tuple[int, Recall]:
    return metrics.same_text_ceiling(Relevance.of_matrix(true), captions)


def ragged(counts: list[int]) -> Tensor:
    """(N,M) bool: image i owns ``counts[i]`` captions."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return owner[None, :] == torch.arange(len(counts))[:, None]


def features(rows: int, dimensions: int = 8, *, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=draw), dim=1)


def oracle(queries: Tensor, gallery: Tensor, true: Tensor) -> list[int]:
    """Rank by sorting, one query at a time; for scores without ties."""
    found = []
    for query, row in zip(queries.double(), true, strict=True):
        order = sorted(range(len(gallery)), key=lambda g: -float(query @ gallery[g].double()))
        found.append(1 + min(place for place, g in enumerate(order) if row[g]))
    return found


def dense(
    queries: Tensor, gallery: Tensor, true: Tensor, replaced: tuple[Tensor, Tensor, Tensor] | None = None
) -> Ranking:
    """The definition, with the whole matrix of scores and that of the relation."""
    scores = queries.double() @ gallery.double().T
    if replaced is not None:
        scores[replaced[:2]] = replaced[2].double()
    scale = queries.double().norm(dim=1).max() * gallery.double().norm(dim=1).max()
    order = torch.randperm(len(gallery), generator=generator("ties", "order"))
    shifts = torch.randint(len(gallery), (len(queries),), generator=generator("ties", "shifts"))
    place = (order + shifts[:, None]) % len(gallery)
    keys = (scores / (float(scale) or 1.0) * 2**20).round().long() * len(gallery) - place
    best = keys.masked_fill(~true, torch.iinfo(torch.long).min).amax(1, keepdim=True)
    positives = true.sum(1)
    hits = true.gather(1, keys.argsort(1, descending=True))
    places = torch.arange(1, len(gallery) + 1)
    hits = (hits & (places <= positives[:, None])).double()
    precision = (hits.cumsum(1) / places * hits).sum(1) / positives
    return Ranking(1 + (keys > best).sum(1), precision, hits.sum(1) / positives, positives)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    distinct=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    swaps=st.integers(0, 20),
    keys=st.sampled_from([20, 150, 1 << 19]),
    seed=st.integers(0, 10**6),
)
def test_lists_and_blocks_give_what_the_dense_definition_gives(
    shape: tuple[int, int], distinct: int, density: float, swaps: int, keys: int, seed: int
):
    """Ties of all kinds (few distinct embeddings), several positives, replaced scores, blocks down to one score."""
    draw = torch.Generator().manual_seed(seed)
    pool = torch.randn(distinct, 4, generator=draw)
    queries = pool[torch.randint(distinct, (shape[0],), generator=draw)]
    gallery = pool[torch.randint(distinct, (shape[1],), generator=draw)]
    true = torch.rand(shape, generator=draw) < density
    true[torch.arange(shape[0]), torch.randint(shape[1], (shape[0],), generator=draw)] = True
    chosen = torch.randperm(shape[0] * shape[1], generator=draw)[:swaps]
    values = pool[torch.randint(distinct, (len(chosen),), generator=draw)].norm(dim=1)
    replaced = (chosen // shape[1], chosen % shape[1], values) if swaps else None
    with patch.dict(module.KEYS, cpu=keys):
        found = ranking(queries, gallery, true, replaced=replaced)
    expected = dense(queries, gallery, true, replaced)
    assert torch.equal(found.rank, expected.rank) and torch.equal(found.positives, expected.positives)
    assert torch.equal(found.r_precision, expected.r_precision)
    assert torch.allclose(found.map_at_r, expected.map_at_r, rtol=1e-12, atol=0)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=12), chunk=st.integers(1, 20), seed=st.integers(0, 99))
def test_ranks_are_those_of_brute_force_for_ragged_captions_and_any_chunk(counts: list[int], chunk: int, seed: int):
    true = ragged(counts)
    images, texts = features(true.shape[0], seed=seed), features(true.shape[1], seed=seed + 1000)
    found = ranks(images, texts, true, chunk=chunk)
    assert found.image_to_text.tolist() == oracle(images, texts, true)
    assert found.text_to_image.tolist() == oracle(texts, images, true.T)


def test_in_a_many_to_many_relation_the_best_true_match_counts():
    true = torch.rand(30, 50, generator=torch.Generator().manual_seed(5)) < 0.1
    true[:, 0] = True
    true[0, :] = True
    images, texts = features(30), features(50, seed=1)
    found = ranks(images, texts, true, chunk=7)
    assert found.image_to_text.tolist() == oracle(images, texts, true)
    assert found.text_to_image.tolist() == oracle(texts, images, true.T)


def test_map_at_r_and_r_precision_by_hand():
    gallery = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])  # of the query 1 in this order
    true = torch.tensor(
        [
            [True, False, True, False, True],  # R 3: of the first three the first and the third
            [True, True, False, False, False],
            [False, False, False, False, True],
            [False, True, True, False, False],
        ]
    )
    found = ranking(torch.ones(4, 1), gallery, true)
    assert found.rank.tolist() == [1, 1, 5, 2] and found.positives.tolist() == [3, 2, 1, 2]
    assert found.map_at_r.tolist() == pytest.approx([(1 + 2 / 3) / 3, 1.0, 0.0, (1 / 2) / 2])
    assert found.r_precision.tolist() == pytest.approx([2 / 3, 1.0, 0.0, 1 / 2])


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_map_at_r_is_the_average_precision_of_the_first_r(chunk: int | None):
    true = torch.rand(30, 50, generator=torch.Generator().manual_seed(5)) < 0.3
    true[:, 0] = True
    images, texts = features(30), features(50, seed=1)
    found = ranking(images, texts, true, chunk=chunk)
    assert found.rank.tolist() == first_true_rank(images, texts, true).tolist()
    for query, row in enumerate(true):
        scores = (images[query].double() @ texts.double().T).numpy()
        count = int(row.sum())
        first = scores.argsort()[::-1][:count].copy()
        hits = row.numpy()[first]
        expected = average_precision_score(hits, scores[first]) * hits.sum() / count if hits.any() else 0.0
        assert float(found.map_at_r[query]) == pytest.approx(expected)
        assert float(found.r_precision[query]) == pytest.approx(hits.sum() / count)


def test_of_one_positive_all_measures_are_recall_at_1():
    images, texts = features(40), features(40, seed=1)
    found = ranking(images, texts, torch.eye(40, dtype=torch.bool))
    assert torch.equal(found.map_at_r, (found.rank == 1).double())
    assert torch.equal(found.r_precision, found.map_at_r)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_replaced_scores_stand_beside_those_of_features_of_any_length(chunk: int | None):
    queries, gallery, true = 3 * features(10), 5 * features(30, seed=1), ragged([3] * 10)
    places, items = torch.arange(30) % 10, torch.arange(30)
    values = torch.randn(30, generator=torch.Generator().manual_seed(2)) * 5
    scores = (queries @ gallery.T).index_put((places, items), values)
    expected = [1 + int((row > row[matching].max()).sum()) for row, matching in zip(scores, true, strict=True)]
    found = first_true_rank(queries, gallery, true, replaced=(places, items, values), chunk=chunk)
    assert found.tolist() == expected != first_true_rank(queries, gallery, true).tolist()


@pytest.mark.parametrize("chunk", [1, 3, 64, None])
def test_tied_ranks_do_not_depend_on_the_chunk(chunk: int | None):
    images = features(40)[torch.arange(40) // 4]  # every embedding four times
    texts = features(120, seed=1)[torch.arange(120) // 6]
    whole, parts = (
        ranks(images, texts, ragged([3] * 40), chunk=1000),
        ranks(images, texts, ragged([3] * 40), chunk=chunk),
    )
    assert torch.equal(whole.image_to_text, parts.image_to_text)
    assert torch.equal(whole.text_to_image, parts.text_to_image)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ranks_on_cuda_are_those_on_the_cpu_ties_included():
    images, texts, true = features(200)[torch.arange(200) // 2], features(600, seed=1), ragged([3] * 200)
    here, there = ranks(images, texts, true), ranks(images.cuda(), texts.cuda(), true)
    assert torch.equal(here.image_to_text, there.image_to_text)
    assert torch.equal(here.text_to_image, there.text_to_image)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_a_constant_encoder_scores_chance(k: int, noise: float):
    true = ragged([5] * 400)
    images = torch.ones(400, 16) / 4 + noise * torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    texts = torch.ones(2000, 16) / 4
    found, chance = ranks(images, texts, true), chance_recall(true, k)
    for direction, queries in (("image_to_text", 400), ("text_to_image", 2000)):
        expected = getattr(chance, direction)
        spread = (expected * (1 - expected) / queries) ** 0.5
        assert abs(recall_at_k(getattr(found, direction), k) - expected) < 4 * spread
    assert recall_at_k(found.text_to_image, k) > 0  # chance, not zero


def test_a_caption_true_of_everything_does_not_give_a_constant_encoder_all_or_nothing():
    true = torch.zeros(200, 200, dtype=torch.bool)
    true[:, 17] = True  # the one true caption stands at another place of the tied ranking for every query
    found = first_true_rank(torch.ones(200, 4), torch.ones(200, 4), true)
    assert len(found.unique()) > 100
    assert 0.15 < recall_at_k(found, 50) < 0.35


def test_differences_below_the_noise_of_an_embedding_are_ties():
    """Without rounding the true match, lower by less than a float32 can say, would always come last."""
    gallery = torch.ones(100, 4, dtype=torch.float64)
    queries = torch.ones(100, 4, dtype=torch.float64)
    true = torch.zeros(100, 100, dtype=torch.bool)
    true[:, 50:] = True
    gallery[50:] -= 1e-12
    assert 0.3 < recall_at_k(first_true_rank(queries, gallery, true), 1) < 0.7


def test_ties_are_broken_evenly_between_true_and_false():
    """Two images with one embedding: each of their captions has its own first in about half of the cases."""
    images = features(1000)[torch.arange(1000) // 2 * 2]
    found = first_true_rank(images.clone(), images, torch.eye(1000, dtype=torch.bool))
    assert set(found.tolist()) == {1, 2}
    assert 0.45 < recall_at_k(found, 1) < 0.55


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_embeddings_are_an_error_that_counts_them(value: float):
    images, texts = features(10), features(20, seed=1)
    texts[[3, 7], 2] = value
    with pytest.raises(ValueError, match="2 of 20"):
        ranks(images, texts, ragged([2] * 10))
    with pytest.raises(ValueError, match="2 of 20"):
        first_true_rank(texts, images, ragged([2] * 10).T)


def test_a_query_without_a_true_match_is_an_error():
    true = ragged([1, 1, 1])
    true[1] = False
    with pytest.raises(ValueError, match="1 queries have no true match"):
        ranks(features(3), features(3, seed=1), true)


def test_misfitting_relevance_and_dimensions_are_errors():
    with pytest.raises(ValueError, match="expected"):
        ranks(features(3), features(3, seed=1), ragged([1, 1]))
    with pytest.raises(ValueError, match="dimensions"):
        ranks(features(3), features(3, 9), ragged([1, 1, 1]))
    with pytest.raises(ValueError, match="shape"):
        ranks(torch.zeros(0, 8), features(3), torch.zeros(0, 3, dtype=torch.bool))


def test_scale_of_the_features_does_not_matter():
    true = ragged([2] * 25)
    images, texts = features(25), features(50, seed=1)
    plain, scaled = ranks(images, texts, true), ranks(images * 1e-6, texts * 1e-3, true)
    assert torch.equal(plain.image_to_text, scaled.image_to_text)


def test_inputs_are_left_alone():
    images, texts = features(4).requires_grad_(), features(4, seed=1)
    before, state = images.detach().clone(), torch.get_rng_state()
    found = ranks(images, texts, ragged([1] * 4))
    assert torch.equal(images, before) and not found.image_to_text.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_recall_at_k_by_hand():
    assert recall_at_k(torch.tensor([1, 2, 5, 11]), 1) == 0.25
    assert recall_at_k(torch.tensor([1, 2, 5, 11]), 5) == 0.75
    for wrong in (lambda: recall_at_k(torch.tensor([1]), 0), lambda: recall_at_k(torch.tensor([]), 1)):
        with pytest.raises(ValueError, match="recall needs"):
            wrong()


def test_chance_by_hand():
    true = ragged([1, 3])
    assert chance_recall(true, 1).image_to_text == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert chance_recall(true, 2).image_to_text == pytest.approx(((1 - 3 / 4 * 2 / 3) + 1) / 2)
    assert chance_recall(true, 1).text_to_image == pytest.approx(0.5)
    assert chance_recall(true, 9).text_to_image == 1.0


def test_the_two_success_rates_and_their_denominators():
    """The same results, two numbers: 2 of 5 queries lost on balance, 3 of the 4 that were right turned wrong."""
    clean = torch.tensor([True, True, True, True, False])
    adversarial = torch.tensor([True, False, False, False, True])
    drop, flip = attack_success_drop(clean, adversarial), attack_success_flip(clean, adversarial)
    assert (drop.numerator, drop.denominator, drop.value) == (2, 5, 0.4)
    assert (flip.numerator, flip.denominator, flip.value) == (3, 4, 0.75)


def test_a_model_that_has_nothing_right_has_no_flip_rate():
    none = torch.zeros(4, dtype=torch.bool)
    assert attack_success_flip(none, none).value is None
    assert attack_success_drop(none, none).value == 0.0
    with pytest.raises(ValueError, match="bool"):
        attack_success_flip(none.float(), none)


def test_equal_texts_bound_the_recall_of_a_faultless_model():
    relevance = ragged([2, 1, 1])
    assert same_text_ceiling(relevance, ["a", "b", "c", "d"]) == (0, Recall(1.0, 1.0))
    # Image 0 can still be found by "b"; image 1 has no text of its own, and of its two images "a" finds one.
    assert same_text_ceiling(relevance, ["a", "b", "a", "d"]) == (2, Recall(pytest.approx((1 + 0.5 + 1) / 3), 0.75))
    # A text twice under one image hits nobody else.
    assert same_text_ceiling(relevance, ["a", "a", "c", "d"]) == (0, Recall(1.0, 1.0))
    # Where equal texts count as true of all their images nothing is lost.
    assert same_text_ceiling(relevance | relevance[:, [2, 1, 0, 3]], ["a", "b", "a", "d"])[1] == Recall(1.0, 1.0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=12), st.integers(0, 10**6))
def test_no_model_with_equal_scores_for_equal_texts_passes_the_ceiling(counts: list[int], seed: int):
    relevance = ragged(counts)
    draw = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, 8, (relevance.shape[1],), generator=draw)
    image, text = torch.randn(len(counts), 6, generator=draw), torch.randn(8, 6, generator=draw)[texts]
    _, ceiling = same_text_ceiling(relevance, [str(number) for number in texts.tolist()])
    found = ranks(image, text, relevance)
    assert recall_at_k(found.text_to_image, 1) <= ceiling.text_to_image + 1e-9
