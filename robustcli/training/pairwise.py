"""Sums over the micro-batches of a step whose rounding does not depend on who adds what.

Floating-point sums depend on their order. Here the order is a binary tree over the numbers of the terms, which any
split into runs of neighbours can share: every process adds what lies within its run, and the rest is added alike.
"""

from collections.abc import Iterator
from typing import Any


class PairwiseSum:
    """Sum of terms 0 to K - 1 as a binary tree: ``(0+1)+(2+3)``, and what is left over from the right, ``(0+1)+2``.

    Terms come in ascending order, all of them or a run of neighbours. At most log2(K) + 2 of them are held at once.

    Attributes:
        nodes: partial sums in ascending order, each as (first term, number of terms, sum).
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int, Any]] = []

    def add(self, value: Any, first: int, count: int = 1) -> None:
        """Add a term, or the sum of ``count`` terms from ``first`` on, a node of another sum over the same terms.

        Args:
            value: a number, or a tensor, which is changed in place.
        """
        while self.nodes:
            start, size, left = self.nodes[-1]
            if size != count or start % (2 * size):  # two halves of no block of the tree
                break
            self.nodes.pop()
            left += value
            first, count, value = start, 2 * size, left
        self.nodes.append((first, count, value))

    def total(self) -> Any:
        """The sum, where all terms were added."""
        _, _, value = self.nodes.pop()
        while self.nodes:
            _, _, left = self.nodes.pop()
            left += value
            value = left
        return value


def pairwise_sum(values: list[float]) -> float:
    """The sum of ``values``, of which there is one at least, by `PairwiseSum`."""
    total = PairwiseSum()
    for number, value in enumerate(values):
        total.add(value, number)
    return float(total.total())


def blocks(run: range) -> Iterator[tuple[int, int]]:
    """The nodes that `PairwiseSum` has of the terms of ``run``, each as (first term, number of terms)."""
    first = run.start
    while first < run.stop:
        count = 1
        while first % (2 * count) == 0 and first + 2 * count <= run.stop:
            count *= 2
        yield first, count
        first += count
