"""95 % intervals by a cluster bootstrap over images.

The captions of one image are not independent, so whole images are drawn, with replacement, and each brings all its
queries (Efron and Tibshirani 1993, section 8; percentile intervals).

A percentile interval of 0 hits in 500 would be [0, 0]. Where all values are 0, or all are 1, the open end is the exact
binomial bound for as many independent trials as there are images (Clopper and Pearson 1934).

A distance between distributions is biased by resamples that hold an item twice: for those there is the jackknife.

Shapes: Q queries, I images (clusters), R resamples, C summed columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from robustcli.utils.seeding import generator

BLOCK_DRAWS = 1 << 22  # draws held at once: 64 MB


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; None where it is not defined (a ratio over nothing, the bounds of a single image)."""

    mean: float | None
    low: float | None
    high: float | None


def wilson(hits: int, trials: int, *, level: float = 0.95) -> Interval:
    """Score interval of the share ``hits / trials`` of independent trials (Wilson 1927), which needs no resampling."""
    if not trials:
        return Interval(None, None, None)
    square = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (hits + square / 2) / (trials + square)
    half = math.sqrt(square * (hits * (trials - hits) / trials + square / 4)) / (trials + square)
    return Interval(hits / trials, centre - half if hits else 0.0, centre + half if hits < trials else 1.0)


def bootstrap(values: Tensor, groups: Tensor, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of the mean of ``values`` (Q,), bool or real; ``groups`` (Q,) names the image of each query.

    For the difference of two models on the same queries see :func:`bootstrap_difference`.

    Args:
        level: coverage in (0,1).

    Raises:
        ValueError: no query, columns of different lengths, or values that are NaN or infinite.
    """
    return bootstrap_ratio(values, torch.ones(len(values)), groups, resamples=resamples, level=level, seed=seed)


def bootstrap_ratio(
    numerator: Tensor, denominator: Tensor, groups: Tensor, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of ``numerator.sum() / denominator.sum()``, both (Q,): for example flips over clean hits.

    Resamples whose denominator is 0 are left out. Errors are those of :func:`bootstrap`.
    """
    table, images = _sums([numerator, denominator], groups)
    mean = _ratio(table.sum(dim=0, keepdim=True)).item()
    if mean != mean:
        return Interval(None, None, None)
    if _one_sided(numerator, denominator):
        margin = -math.expm1(math.log((1 - level) / 2) / int((table[:, 1] > 0).sum()))
        return Interval(1.0, 1.0 - margin, 1.0) if mean else Interval(0.0, 0.0, margin)
    draws = _ratio(_resampled(table, resamples, seed))
    return _percentiles(mean, draws, images, level)


def bootstrap_difference(
    first: Tensor, second: Tensor, groups: Tensor, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of mean(first) - mean(second), two models on the same queries (Q,) and the same resampled images.

    The pairing removes the variance that both share. Errors are those of :func:`bootstrap`.
    """
    table, images = _sums([first, second, torch.ones(len(first))], groups)

    def difference(sums: Tensor) -> Tensor:
        return sums[:, 0] / sums[:, 2] - sums[:, 1] / sums[:, 2]

    mean = difference(table.sum(dim=0, keepdim=True)).item()
    return _percentiles(mean, difference(_resampled(table, resamples, seed)), images, level)


def jackknife(
    statistic: Callable[[Tensor], float], items: int, *, parts: int = 20, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of ``statistic`` of (I,) bool, the items that count, by leaving out one of ``parts`` groups at a time.

    The delete-a-group jackknife (Efron and Tibshirani 1993, section 11.5; Kott 2001) with the quantile of Student's t.
    """
    everything = torch.ones(items, dtype=torch.bool)
    mean, parts = statistic(everything), min(parts, items)
    if mean != mean:
        return Interval(None, None, None)
    if parts < 3:  # of two groups each is judged by the other alone
        return Interval(mean, None, None)
    from scipy.special import stdtrit

    group = torch.randperm(items, generator=generator("jackknife", seed)) % parts
    left = torch.tensor([statistic(everything & (group != part)) for part in range(parts)], dtype=torch.float64)
    error = float(((parts - 1) / parts * (left - left.mean()).square().sum()).sqrt())
    reach = error * float(stdtrit(parts - 1, (1 + level) / 2))
    return Interval(mean, mean - reach, mean + reach) if reach == reach else Interval(mean, None, None)


def _sums(columns: list[Tensor], groups: Tensor) -> tuple[Tensor, int]:
    """(I,C) float64: sums of each column over the queries of each image."""
    if any(column.shape != groups.shape for column in columns) or groups.ndim != 1 or len(groups) == 0:
        shapes = [tuple(column.shape) for column in columns]
        raise ValueError(f"expected columns of one length >= 1, got {shapes} and groups {tuple(groups.shape)}")
    rows = torch.stack([column.detach().cpu().double() for column in columns], dim=1)
    if not torch.isfinite(rows).all():
        raise ValueError(f"{int((~torch.isfinite(rows)).any(dim=1).sum())} of {len(rows)} values are NaN or infinite")
    names, cluster = torch.unique(groups.cpu(), return_inverse=True)
    return torch.zeros(len(names), len(columns), dtype=torch.float64).index_add_(0, cluster, rows), len(names)


def _resampled(table: Tensor, resamples: int, seed: int) -> Tensor:
    """(R,C): the column sums of R resamples of the images (I,C), as one product with their multiplicities."""
    images = len(table)
    draw = generator("bootstrap", seed)
    step = max(1, BLOCK_DRAWS // images)
    parts = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        # Offset by row, so that one bincount gives the multiplicities of all resamples of the block.
        chosen = torch.randint(images, (count, images), generator=draw) + images * torch.arange(count)[:, None]
        weights = torch.bincount(chosen.flatten(), minlength=count * images).view(count, images)
        parts.append(weights.double() @ table)
    return torch.cat(parts)


def _ratio(sums: Tensor) -> Tensor:
    """(R,2) -> (R,); NaN where the denominator is 0."""
    return sums[:, 0] / sums[:, 1].where(sums[:, 1] != 0, torch.nan)


def _percentiles(mean: float, draws: Tensor, images: int, level: float) -> Interval:
    draws = draws[~draws.isnan()]
    if images < 2 or len(draws) == 0:
        return Interval(mean, None, None)
    tail = (1 - level) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Interval(mean, low, high)


def _one_sided(numerator: Tensor, denominator: Tensor) -> bool:
    """True for a proportion of 0 or 1, whose percentile interval would be a point."""
    counts = ((denominator == 0) | (denominator == 1)).all()
    return bool(counts and ((numerator == 0).all() or (numerator == denominator).all()))
