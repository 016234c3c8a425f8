"""Distances between distributions against closed forms, scikit-learn's kernels and what they must be by symmetry."""

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from robustcli.metrics import PairedMMD, frechet_distance, jackknife, jensen_shannon, median_bandwidth


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(sample: torch.Tensor) -> torch.Tensor:
    """The sample with mean 0 and the identity as its unbiased covariance, exactly."""
    centred = sample - sample.mean(0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(centred.T))).T


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    base = whitened(normal(0, 200, 3))
    scales, shift = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.0, -1.0]).double()
    assert frechet_distance(base, whitened(normal(1, 300, 3)) * scales + shift) == pytest.approx(
        float(shift.square().sum() + (scales - 1).square().sum()), rel=1e-9
    )
    one, other = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double(), torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    first, second = (
        whitened(normal(seed, 90, 2)) @ torch.linalg.cholesky(each).T for seed, each in ((2, one), (3, other))
    )
    # Of 2 x 2 matrices the trace of a root is (tr + 2 sqrt det) under a root.
    product = one @ other
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    assert frechet_distance(first, second) == pytest.approx(float(one.trace() + other.trace() - 2 * root), rel=1e-9)


def test_a_sample_has_no_distance_to_itself_and_fewer_samples_than_dimensions_are_borne() -> None:
    few = normal(0, 5, 20)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(few, few + 1) == pytest.approx(20, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(few[:1], few)


def test_mmd_is_the_u_statistic_over_kernels_of_scikit_learn() -> None:
    first, second, sigma = normal(0, 12, 4), normal(1, 12, 4) + 0.5, 1.7
    items = torch.arange(12)
    xx, yy, xy = (
        torch.from_numpy(rbf_kernel(one.numpy(), other.numpy(), gamma=1 / (2 * sigma**2)))
        for one, other in ((first, first), (second, second), (first, second))
    )
    h = xx + yy - xy - xy.T
    expected = float((h.sum() - h.diagonal().sum()) / (12 * 11))
    mmd = PairedMMD(first, items, second, items, bandwidth=sigma)
    assert mmd() == pytest.approx(expected, rel=1e-12)
    kept = items < 7
    assert mmd(kept) == pytest.approx(PairedMMD(first[:7], items[:7], second[:7], items[:7], bandwidth=sigma)())


def test_mmd_is_near_zero_for_equal_sets_and_for_paired_versions_of_one_distribution() -> None:
    sample, items = normal(0, 300, 3), torch.arange(300)
    sigma = median_bandwidth(sample)
    assert PairedMMD(sample, items, sample, items, bandwidth=sigma)() == pytest.approx(0, abs=1e-12)
    # Versions of the same items hang together; the kernels of one item do not count, so that nothing is gained by it.
    centres = normal(1, 300, 3)
    first, second = centres + 0.1 * normal(2, 300, 3), centres.repeat(2, 1) + 0.1 * normal(3, 600, 3)
    assert abs(PairedMMD(first, items, second, items.repeat(2), bandwidth=sigma)()) < 0.002
    assert PairedMMD(first, items, second + 1, items.repeat(2), bandwidth=sigma)() > 0.05


def test_mmd_counts_several_samples_of_an_item_and_needs_two_items() -> None:
    first, second = normal(0, 4, 2), normal(1, 6, 2)
    of_first, of_second = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2, 2, 2])

    def mean(one: torch.Tensor, of_one: torch.Tensor, other: torch.Tensor, of_other: torch.Tensor) -> float:
        kernels = torch.from_numpy(rbf_kernel(one.numpy(), other.numpy(), gamma=0.5))
        return float(kernels[of_one[:, None] != of_other[None, :]].mean())

    expected = mean(first, of_first, first, of_first) + mean(second, of_second, second, of_second)
    expected -= 2 * mean(first, of_first, second, of_second)
    mmd = PairedMMD(first, of_first, second, of_second, bandwidth=1.0)
    assert mmd() == pytest.approx(expected, rel=1e-12)
    assert mmd(torch.tensor([True, False, False])) != mmd(torch.tensor([True, False, False])), "NaN"


def test_jensen_shannon_is_in_bits() -> None:
    assert jensen_shannon(torch.tensor([1, 0, 3]), torch.tensor([2, 0, 6])) == pytest.approx(0)
    assert jensen_shannon(torch.tensor([1, 0]), torch.tensor([0, 5])) == pytest.approx(1)
    # Half of (log2(2/3) + log2(2)) / 2, and half of log2(4/3).
    assert jensen_shannon(torch.tensor([1, 1]), torch.tensor([1, 0])) == pytest.approx(0.311278, abs=1e-6)


def test_the_jackknife_of_a_mean_is_the_classical_interval() -> None:
    values = normal(0, 40)
    interval = jackknife(lambda kept: float(values[kept].mean()), 40, parts=40)
    assert interval.mean is not None and interval.low is not None and interval.high is not None
    assert interval.mean == pytest.approx(float(values.mean()))
    # Leaving out one at a time gives the standard error of a mean exactly; 2.0227 is Student's t of 39.
    assert (interval.high - interval.low) / 2 == pytest.approx(2.0227 * float(values.std()) / 40**0.5, rel=1e-4)
    assert jackknife(lambda kept: float("nan"), 40).mean is None
    assert jackknife(lambda kept: 1.0, 2).low is None
