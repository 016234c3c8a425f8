"""The vectorised bootstrap against a plain loop, its coverage, and the figures that have no interval."""

import pytest
import torch
from torch import Tensor

from robustcli.metrics import Interval, bootstrap, bootstrap_difference, bootstrap_ratio, wilson
from robustcli.utils.seeding import generator


def clustered(images: int, per_image: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Hits (Q,) bool that hang together within an image (share 0.5 in expectation), and the image of each."""
    draw = torch.Generator().manual_seed(seed)
    ease = torch.rand(images, generator=draw)
    groups = torch.arange(images).repeat_interleave(per_image)
    return torch.rand(images * per_image, generator=draw) < ease[groups], groups


def by_loop(numerator: Tensor, denominator: Tensor, groups: Tensor, *, resamples: int, seed: int) -> list[float]:
    """Each resample drawn and summed query by query, from the same draws."""
    names = groups.unique().tolist()
    chosen = torch.randint(len(names), (resamples, len(names)), generator=generator("bootstrap", seed))
    found = []
    for row in chosen.tolist():
        queries = torch.cat([torch.nonzero(groups == names[i]).flatten() for i in row])
        found.append(float(numerator[queries].double().sum() / denominator[queries].double().sum()))
    return found


def test_equals_a_direct_loop_with_ragged_groups():
    groups = torch.tensor([7, 7, 7, 2, 2, 9, 4, 4, 4, 4])
    values = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.25, 0.0, 1.0, 0.0])
    found = bootstrap(values, groups, resamples=200, seed=3)
    loop = torch.tensor(by_loop(values, torch.ones(10), groups, resamples=200, seed=3), dtype=torch.float64)
    assert found.mean == pytest.approx(0.475)
    assert [found.low, found.high] == pytest.approx(
        torch.quantile(loop, torch.tensor([0.025, 0.975]).double()).tolist()
    )


def test_a_ratio_resamples_its_denominator_too():
    clean, groups = clustered(60, 5, seed=0)
    flipped = clean & clustered(60, 5, seed=1)[0]
    found = bootstrap_ratio(flipped, clean, groups, resamples=100, seed=1)
    loop = torch.tensor(by_loop(flipped, clean, groups, resamples=100, seed=1), dtype=torch.float64)
    assert found.mean == pytest.approx(int(flipped.sum()) / int(clean.sum()))
    assert [found.low, found.high] == pytest.approx(
        torch.quantile(loop, torch.tensor([0.025, 0.975]).double()).tolist()
    )


def test_covers_the_truth_in_about_95_of_100_draws():
    covered = 0
    for seed in range(200):
        found = bootstrap(*clustered(80, 5, seed=seed), resamples=300, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 180 <= covered <= 199


def test_queries_of_one_image_are_not_independent_evidence():
    hits, groups = clustered(100, 5, seed=0)
    by_image, by_query = bootstrap(hits, groups), bootstrap(hits, torch.arange(500))
    assert by_image.high - by_image.low > 1.2 * (by_query.high - by_query.low)


def test_a_paired_difference_is_narrower_than_two_intervals():
    first, groups = clustered(200, 5, seed=0)
    second = first.clone()
    second[::20] = False  # the same queries but for a few: the difference is known much better than either figure
    found = bootstrap_difference(first, second, groups)
    single = bootstrap(first, groups)
    assert found.mean == pytest.approx(float(first.double().mean() - second.double().mean()))
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < 0.5 * (single.high - single.low)


def test_same_seed_same_interval_and_no_global_randomness():
    values, groups = torch.linspace(0, 1, 50) ** 3, torch.arange(50)
    state = torch.get_rng_state()
    assert bootstrap(values, groups, seed=4) == bootstrap(values, groups, seed=4)
    assert bootstrap(values, groups, seed=4) != bootstrap(values, groups, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_right_of_500_is_not_certainty():
    groups = torch.arange(100).repeat_interleave(5)
    none, everything = torch.zeros(500, dtype=torch.bool), torch.ones(500, dtype=torch.bool)
    assert bootstrap(none, groups) == Interval(0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 100)))
    assert bootstrap(everything, groups) == Interval(1.0, pytest.approx(0.025 ** (1 / 100)), 1.0)


def test_a_ratio_over_nothing_is_none():
    nothing = torch.zeros(10, dtype=torch.bool)
    assert bootstrap_ratio(nothing, nothing, torch.arange(10)) == Interval(None, None, None)


def test_one_image_has_a_mean_and_no_interval():
    assert bootstrap(torch.tensor([1.0, 0.0]), torch.tensor([3, 3])) == Interval(0.5, None, None)


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        bootstrap(torch.tensor([1.0, float("nan"), 0.0]), torch.arange(3))
    with pytest.raises(ValueError, match="one length"):
        bootstrap(torch.ones(3), torch.arange(4))


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_is_that_of_the_tables(hits, trials, low, high):
    found = wilson(hits, trials)
    assert (found.mean, found.low, found.high) == (
        hits / trials,
        pytest.approx(low, abs=1e-4),
        pytest.approx(high, abs=1e-4),
    )
    assert wilson(0, 0) == Interval(None, None, None)


def test_the_open_end_of_a_bootstrap_is_that_of_clopper_and_pearson():
    groups = torch.arange(50)
    for level in (0.9, 0.95, 0.99):
        margin = 1 - ((1 - level) / 2) ** (1 / 50)  # where nothing is a hit the bound has a closed form
        assert bootstrap(torch.zeros(50), groups, level=level).high == pytest.approx(margin, rel=1e-9)
        assert bootstrap(torch.ones(50), groups, level=level).low == pytest.approx(1 - margin, rel=1e-9)


@pytest.mark.parametrize("trials", [1, 7, 500])
def test_wilson_holds_the_share_and_keeps_within_0_and_1(trials: int):
    for hits in {0, 1, trials // 2, trials - 1, trials}:
        found = wilson(hits, trials)
        assert 0 <= found.low <= found.mean <= found.high <= 1
