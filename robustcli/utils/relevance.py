"""The relation of truth between queries and a gallery, as the list of true items of each query.

A matrix of a whole gallery would be 200 GB for 200,000 images and a million captions; the lists are 8 MB.

Shapes: Q queries, G gallery items, P true pairs, B rows of a call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 1 << 24  # entries of a block of a matrix that is read into lists: 16 MB


@dataclass(frozen=True, eq=False)
class Relevance:
    """A bool matrix (Q,G) that holds its True entries alone.

    Args:
        offsets: (Q+1,) long; the true items of query ``q`` are ``items[offsets[q]:offsets[q + 1]]``.
        items: (P,) long, columns of the matrix, ascending and each once within a query.
        width: G.
    """

    offsets: Tensor
    items: Tensor
    width: int

    @classmethod
    def of_pairs(cls, queries: Tensor, items: Tensor, shape: tuple[int, int]) -> "Relevance":
        """From pairs of rows and columns (P,) long in any order; one that stands there twice counts once."""
        codes = torch.unique(queries * shape[1] + items)
        rows = torch.div(codes, max(shape[1], 1), rounding_mode="floor")
        counts = torch.bincount(rows, minlength=shape[0])
        return cls(_offsets(counts), codes - rows * shape[1], shape[1])

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> "Relevance":
        """From a matrix (Q,G) bool."""
        if matrix.ndim != 2 or matrix.dtype != torch.bool:
            raise ValueError(f"relevance is {tuple(matrix.shape)} {matrix.dtype}, expected (queries, items) torch.bool")
        return cls(_offsets(matrix.sum(1)), torch.nonzero(matrix)[:, 1], matrix.shape[1])

    @classmethod
    def of_blocks(cls, block: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> "Relevance":
        """From a function that gives the rows (B,) of a matrix, asked for as many at once as `BLOCK` allows."""
        parts = [cls.of_matrix(block(each)) for each in torch.split(rows, max(1, BLOCK // max(1, width)))]
        counts = torch.cat([part.counts for part in parts])
        return cls(_offsets(counts), torch.cat([part.items for part in parts]), width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.offsets) - 1, self.width

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> Tensor:
        """(Q,) long: the number of true items of each query."""
        return self.offsets.diff()

    @cached_property
    def most(self) -> int:
        """The largest number of true items of a query."""
        return int(self.counts.max()) if len(self) else 0

    @property
    def share(self) -> float:
        """Share of true pairs among all."""
        return len(self.items) / (len(self) * self.width)

    @cached_property
    def queries(self) -> Tensor:
        """(P,) long: the query of each pair, ascending."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.items.device), self.counts)

    @cached_property
    def T(self) -> "Relevance":
        """(G,Q): the queries that each item is true of."""
        order = torch.argsort(self.items, stable=True)
        counts = torch.bincount(self.items, minlength=self.width)
        return Relevance(_offsets(counts), self.queries[order], len(self))

    def __getitem__(self, rows: Tensor) -> "Relevance":
        """(B,G): the queries ``rows`` (B,) long, which may repeat."""
        starts, counts = self.offsets[rows], self.counts[rows]
        offsets = _offsets(counts)
        pairs = torch.arange(int(offsets[-1]), device=rows.device)
        pairs = pairs + torch.repeat_interleave(starts - offsets[:-1], counts)
        return Relevance(offsets, self.items[pairs], self.width)

    def among(self, items: Tensor) -> "Relevance":
        """(Q,B): the columns ``items`` (B,) long, which may repeat."""
        return self.T[items].T

    def matrix(self, rows: Tensor | None = None) -> Tensor:
        """(B,G) bool: the queries ``rows`` (B,), which may repeat; None: all. It waits for no device."""
        chosen = torch.arange(len(self), device=self.items.device) if rows is None else rows
        starts, counts = self.offsets[chosen][:, None], self.counts[chosen][:, None]
        matrix = torch.zeros(len(chosen), self.width, dtype=torch.bool, device=self.items.device)
        if not len(self.items):
            return matrix
        # A table as wide as the longest list; a shorter one repeats its first item, an empty one writes False.
        places = torch.arange(self.most, device=self.items.device)
        pairs = torch.where(places < counts, starts + places, starts).clamp(max=len(self.items) - 1)
        return matrix.scatter_(1, self.items[pairs], (counts > 0).expand_as(pairs))

    def to(self, device: torch.device | str) -> "Relevance":
        moved = Relevance(self.offsets.to(device), self.items.to(device), self.width)
        vars(moved)["most"] = self.most  # read where the lists still are, so that the device need not be asked
        return moved


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
