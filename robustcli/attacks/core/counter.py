"""Forward and backward passes that an attack asked of a model, counted by sample.

Shapes: N samples, B of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryCounter:
    """Counts, each (N,) long on the CPU, added to in place.

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
        """What a counter of ``rows`` (B,) counted (None: of the same samples), ``times`` over."""
        for name, counts in vars(spent).items():
            mine: Tensor = getattr(self, name)
            if rows is None:
                mine.add_(times * counts)
            else:
                mine.index_add_(0, rows.cpu(), times * counts)

    def part(self, rows: Tensor) -> "QueryCounter":
        """A copy of the counts of ``rows`` (B,) alone."""
        return QueryCounter(**{name: counts[rows.cpu()] for name, counts in vars(self).items()})

    def add_texts(self, queries: Tensor, gradients: Tensor, owner: Tensor) -> None:
        """The passes for M captions, each (M,) long, booked on the images that own them (``owner`` (M,))."""
        self.queries.index_add_(0, owner.cpu(), queries)
        self.gradients.index_add_(0, owner.cpu(), gradients)


def spread(total: int, samples: int) -> Tensor:
    """(N,) long: a cost of a whole batch, shared out evenly; the sum is exact."""
    shares = torch.full((samples,), total // max(samples, 1), dtype=torch.long)
    shares[: total % max(samples, 1)] += 1
    return shares
