"""What judging a model means, whether it ranks captions or classes.

Shapes: B chunk of images, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from robustcli.diagnostics import Subject
from robustcli.report.figures import Example
from robustcli.utils.seeding import derive_seed

CLEAN = "clean"
SPENT = ("queries", "gradients", "zero_gradients", "nan_gradients")
COSTS = ("norm", *SPENT)  # of an image and its captions
Part = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]  # a name, and what computes the part of that name


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a chunk: rows (B,) of the images in the set, images (B,C,H,W) and their captions, if any;
    ``variant`` names one of several outputs of an ensemble.
    """

    rows: Tensor
    images: Tensor
    captions: tuple[str, ...] = ()
    variant: str = ""


Keep = Callable[[Attacked], None]


class Images(Protocol):
    """What every data set has."""

    image_ids: Sequence[str]

    def images(self, indices: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1]."""

    def __len__(self) -> int:
        """How many images."""


class Judge(ABC):
    """Judges models on the first ``limit`` images of a data set.

    Args:
        data: the set.
        batch_size: images that are attacked at once; no figure depends on it but through rounding, and through the
            draws of a model that draws.
        limit: images; None for all.
        on_chunk: called with the number of images done, for a display.
    """

    directions: tuple[str, ...]

    def __init__(
        self,
        data: Images,
        *,
        batch_size: int,
        limit: int | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        self.batch_size, self.on_chunk = batch_size, on_chunk or (lambda _: None)
        self.image_rows = torch.arange(min(limit or len(data), len(data)))

    def __len__(self) -> int:
        return len(self.image_rows)

    @abstractmethod
    def records(
        self, model: Any, label: str, name: str, attack: Any, *, keep: Keep | None = None, part: Part | None = None
    ) -> pd.DataFrame:
        """One row a query, for the model ``label`` under the attack ``name`` (None: no attack).

        Args:
            keep: is given what the attack put out, chunk by chunk.
            part: keeps the result of a chunk, so that a killed run goes on at the samples that are left; None: nothing
                is kept.
        """

    @abstractmethod
    def chance(self) -> dict[str, float]:
        """Recall@1 of a random ranking, by direction."""

    @abstractmethod
    def examples(self, model: Any, attack: Any, records: pd.DataFrame, count: int) -> list[Example]:
        """Some images spread over the set with what the attack makes of them; ``records`` are those of the attack."""

    @abstractmethod
    def subject(self, model: Any, samples: int) -> Subject:
        """``samples`` images spread over the set, for diagnostics."""

    @abstractmethod
    def describe(self) -> list[str]:
        """On what is judged and how, a sentence each."""

    def chunks(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        """The rows (default: all) in chunks of ``batch_size``."""
        yield from torch.split(self.image_rows if rows is None else rows, self.batch_size)

    def spread(self, count: int) -> Tensor:
        """Rows of ``count`` images, evenly over the set."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Within it a model that draws gives every chunk the same draws, none of which an attack has seen; the global
    generators are left as they were.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("judge"))
        yield


def computed(_name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The `Part` that keeps nothing."""
    return compute()
