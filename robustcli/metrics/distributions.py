"""Distances between two samples of embeddings: Frechet distance, and maximum mean discrepancy.

Shapes: P and Q samples, D embedding, I items.
"""

import torch
from torch import Tensor

_BLOCK = 1024  # rows of a kernel at once: 80 MB against 10,000 samples


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to both samples, (P,D) and (Q,D), in float64.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2) with unbiased covariances (Dowson and Landau 1982; Heusel et
    al. 2017). It is biased upwards where a sample is not much larger than D: compare samples of equal sizes.

    Raises:
        ValueError: fewer than two samples, or embeddings of different sizes.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"expected two samples of at least 2, got {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = first.double(), second.double()
    one, other = torch.cov(first.T).reshape(first.shape[1], -1), torch.cov(second.T).reshape(first.shape[1], -1)
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    return max(0.0, float(apart + one.trace() + other.trace() - 2 * shared))


def median_bandwidth(sample: Tensor) -> float:
    """Width of an RBF kernel for ``sample`` (P,D): the median distance of two samples; 1 where that is 0."""
    return float(torch.pdist(sample.double()).median()) or 1.0 if len(sample) > 1 else 1.0


class PairedMMD:
    """Squared maximum mean discrepancy with an RBF kernel between two versions of the same items, without bias.

    Both samples hang together by their items, so that no kernel of two samples of one item counts: the U-statistic of
    Gretton et al. 2012, lemma 6, with several samples an item. It may be negative where both are of one distribution.

    Args:
        first, second: (P,D) and (Q,D).
        first_items, second_items: (P,) and (Q,) long, the item of each, from 0 to I-1.
        bandwidth: sigma of exp(-|x - y|^2 / (2 sigma^2)).
    """

    def __init__(
        self, first: Tensor, first_items: Tensor, second: Tensor, second_items: Tensor, *, bandwidth: float
    ) -> None:
        size = 1 + int(max(first_items.max(), second_items.max()))
        versions = {"first": (first.double(), first_items), "second": (second.double(), second_items)}
        counts = {name: torch.bincount(items, minlength=size).double() for name, (_, items) in versions.items()}
        # Sums of kernels and numbers of them for each two items: any part of the items is then a part of these.
        self._parts = []
        for one, other, sign in (("first", "first", 1.0), ("second", "second", 1.0), ("first", "second", -2.0)):
            sums = _kernel_sums(*versions[one], *versions[other], size, bandwidth).fill_diagonal_(0)
            numbers = torch.outer(counts[one], counts[other]).fill_diagonal_(0)
            self._parts.append((sign, sums, numbers))

    def __call__(self, kept: Tensor | None = None) -> float:
        """The discrepancy; ``kept`` (I,) bool: of these items alone. NaN for fewer than two items."""
        total = 0.0
        for sign, sums, numbers in self._parts:
            weights = torch.ones(len(sums), dtype=sums.dtype) if kept is None else kept.to(sums.dtype)
            pairs = float(weights @ numbers @ weights)
            total += sign * float(weights @ sums @ weights) / pairs if pairs else float("nan")
        return total


def jensen_shannon(first: Tensor, second: Tensor) -> float:
    """Jensen-Shannon divergence in bits, from 0 to 1, of two vectors (V,) of counts (Lin 1991)."""
    one, other = first.double() / first.sum(), second.double() / second.sum()
    middle = (one + other) / 2
    return float(sum((torch.xlogy(each, each / middle.where(middle > 0, 1.0))).sum() for each in (one, other))) / (
        2 * torch.log(torch.tensor(2.0, dtype=torch.float64)).item()
    )


def _kernel_sums(
    first: Tensor, first_items: Tensor, second: Tensor, second_items: Tensor, size: int, bandwidth: float
) -> Tensor:
    """(I,I): sums of the kernel over the samples of each two items."""
    sums = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        kernel = (torch.cdist(first[rows], second).square_() / (-2 * bandwidth**2)).exp_()
        by_column = torch.zeros(len(kernel), size, dtype=torch.float64).index_add_(1, second_items, kernel)
        sums.index_add_(0, first_items[rows], by_column)
    return sums
