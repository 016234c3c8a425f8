"""Evaluators: models on a data set, clean and under one attack run, a record a query.

Shapes: B chunk of images, C channels, H height, W width, R fresh answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks import ThreatModel
from robustcli.attacks.core.base import is_randomised
from robustcli.attacks.core.frozen import frozen
from robustcli.diagnostics import Subject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.utils.seeding import derive_seed

Part = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]  # a name, and what computes the part of that name


@dataclass(frozen=True)
class Attacked:
    """Output of an attack on a chunk: rows (B,) of the images in the set, images (B,C,H,W) and their captions, if any;
    ``variant`` names one of several outputs of an ensemble.
    """

    rows: Tensor
    images: Tensor
    captions: tuple[str, ...] = ()
    variant: str = ""


Keep = Callable[[AttackRun, Attacked], None]


@dataclass(frozen=True)
class Example:
    """One image with a caption or a class, before and after an attack, to be shown.

    Attributes:
        clean, adversarial: images (3,H,W) in [0,1] on the CPU.
        caption, adversarial_caption: as written and as edited; or the classes that the model gives.
        note: what became of it, for example ``right caption: rank 1, under attack 37``.
    """

    clean: Any
    adversarial: Any
    caption: str
    adversarial_caption: str
    note: str = ""


class Images(Protocol):
    """A data set, as far as every evaluator reads it."""

    name: str
    image_ids: Sequence[str]

    def images(self, indices: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1]."""

    def __len__(self) -> int:
        """How many images."""


class Evaluator(ABC):
    """Judges models on the first ``limit`` images of a data set.

    Args:
        data: the set.
        threat: what attacks may change; every result is audited against that of its run.
        batch_size: images that are attacked at once; no figure depends on it but through rounding, and through the
            draws of a model that draws.
        limit: images; None for all.
        fresh: answers of a model that draws, none of which an attack has seen, that judge a query.
        seed: of the run; names the fresh draws.
        on_chunk: called with the number of images done, for a display.
    """

    directions: tuple[str, ...]

    def __init__(
        self,
        data: Images,
        threat: ThreatModel,
        *,
        batch_size: int,
        limit: int | None = None,
        fresh: int = 1,
        seed: int = 0,
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        self.data, self.threat, self.fresh, self.seed = data, threat, fresh, seed
        self.batch_size, self.on_chunk = batch_size, on_chunk or (lambda _: None)
        self.image_rows = torch.arange(min(limit or len(data), len(data)))

    def __len__(self) -> int:
        return len(self.image_rows)

    @abstractmethod
    def clean(self, entry: Entry) -> pd.DataFrame:
        """One row a query, without attack."""

    @abstractmethod
    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        """One row a query and entry of the run.

        Args:
            keep: is given what the attack put out, chunk by chunk.
            part: keeps the result of a chunk, so that a killed run goes on at the samples that are left; None: nothing
                is kept.

        Raises:
            RuntimeError: a result beyond the threat model: a failed run, never a number.
        """

    @abstractmethod
    def chance(self) -> dict[str, float]:
        """Recall@1 of a random ranking, by direction."""

    @abstractmethod
    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        """Some images spread over the set with what the attack makes of them; ``records`` are those of the run."""

    @abstractmethod
    def subject(self, entry: Entry, samples: int) -> Subject:
        """``samples`` images spread over the set, for diagnostics."""

    @abstractmethod
    def answers(self, model: Any, images: Tensor) -> Tensor:
        """What tells whether a model draws: logits or embeddings (B,K)."""

    @abstractmethod
    def describe(self) -> list[str]:
        """On what is judged and how, a sentence each."""

    def entry(self, label: str, model: Any, defence: str | None = None) -> Entry:
        """A row of the table, in eval mode; whether its answers are drawn is seen on the first images."""
        model.eval()
        probe = self.data.images(self.image_rows[:8]).to(model.device)
        with frozen(model), torch.no_grad():
            said = getattr(model, "randomised", None)
            drawn = said if isinstance(said, bool) else is_randomised(lambda images: self.answers(model, images), probe)
        made = Entry(label=label, model=model, randomised=drawn)
        return made if defence is None else replace(made, defence=defence)

    def chunks(self) -> Iterator[Tensor]:
        """The rows in chunks of ``batch_size``."""
        yield from torch.split(self.image_rows, self.batch_size)

    def spread(self, count: int) -> Tensor:
        """Rows of ``count`` images, evenly over the set."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def draws(self, entry: Entry) -> int:
        """Fresh answers that judge a query of ``entry``."""
        return self.fresh if entry.randomised else 1


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
