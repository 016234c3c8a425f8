"""Query counter of an attack: forward and backward passes, by sample.

Shapes: N samples, B rows of them, M captions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryCounter:
    """Counts of passes, each (N,) long on the CPU, added to in place.

    Attributes:
        queries, gradients: forward and backward passes.
        zero_gradients, nan_gradients: gradients that were all zero, or held a NaN (and were dropped).
    """

    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nan_gradients: Tensor

    @classmethod
    def of(cls, samples: int) -> "QueryCounter":
        """All counts at 0."""
        return cls(*(torch.zeros(samples, dtype=torch.long) for _ in range(4)))

    def add(self, spent: "QueryCounter", rows: Tensor | None = None, *, times: int = 1) -> None:
        """Add the counts of a counter of ``rows`` (B,) (None: of the same samples), multiplied by ``times``."""
        for name, counts in vars(spent).items():
            total: Tensor = getattr(self, name)
            if rows is None:
                total.add_(times * counts)
            else:
                total.index_add_(0, rows.cpu(), times * counts)

    def part(self, rows: Tensor) -> "QueryCounter":
        """A copy of the counts of ``rows`` (B,) alone."""
        return QueryCounter(**{name: counts[rows.cpu()] for name, counts in vars(self).items()})

    def add_texts(self, queries: Tensor, gradients: Tensor, owner: Tensor) -> None:
        """Add the passes for M captions, each (M,) long, to the images that own them (``owner`` (M,))."""
        self.queries.index_add_(0, owner.cpu(), queries)
        self.gradients.index_add_(0, owner.cpu(), gradients)


def spread(total: int, samples: int) -> Tensor:
    """(N,) long: even shares of the cost of a whole batch; their sum is exactly ``total``."""
    shares = torch.full((samples,), total // max(samples, 1), dtype=torch.long)
    shares[: total % max(samples, 1)] += 1
    return shares
