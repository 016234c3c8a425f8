"""Evaluators: models on a data set, clean and under one attack run, a record a query.

Shapes: B images of a chunk, C channels, H height, W width, K logits or features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks import ThreatModel
from robustcli.attacks.core.base import is_randomised
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.passes import Problem
from robustcli.diagnostics import Subject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.timing import Timing
from robustcli.models.network import resizing
from robustcli.utils.seeding import derive_seed

Part = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]  # (name, compute) -> result, cached by name


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
    """Example for display: an image with a caption or a class, clean and adversarial.

    Attributes:
        clean, adversarial: images (3,H,W) in [0,1] on the CPU.
        caption, adversarial_caption: as written and as edited; or the classes that the model gives.
        note: outcome, for example the ranks of a true caption.
    """

    clean: Any
    adversarial: Any
    caption: str
    adversarial_caption: str
    note: str = ""


class Images(Protocol):
    """Protocol of a data set: the part that every evaluator reads."""

    name: str
    image_ids: Sequence[str]
    notes: Sequence[str]

    def images(self, indices: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1]."""

    def __len__(self) -> int:
        """Number of images."""


class Evaluator(ABC):
    """Base class: evaluation of models on the first ``limit`` images of a data set.

    Args:
        data: the data set.
        threat: threat model of the attacks; every result is audited against that of its run.
        batch_size: images that are attacked at once; figures depend on it by rounding alone, but for attacks of
            torchattacks, whose draws are those of a batch, and for a randomised model that does not name its draws.
        limit: images; None for all.
        fresh: draws of a randomised model that judge a query, none of which an attack has seen.
        seed: of the run, and so of the fresh draws.
        at_model: the perturbation stands at the input of a model, which images are resized to first, by its own resize.
        on_chunk: called with the number of images done, for a progress display.
    """

    directions: tuple[str, ...]
    unit: str = "images"  # that are counted in a progress display

    def __init__(
        self,
        data: Images,
        threat: ThreatModel,
        *,
        batch_size: int,
        limit: int | None = None,
        fresh: int = 1,
        seed: int = 0,
        at_model: bool = False,
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        self.data, self.threat, self.fresh, self.seed, self.at_model = data, threat, fresh, seed, at_model
        self.batch_size, self.on_chunk = batch_size, on_chunk or (lambda _: None)
        self.image_rows, self.shortened = torch.arange(min(limit or len(data), len(data))), ""

    def __len__(self) -> int:
        return len(self.image_rows)

    @abstractmethod
    def clean(self, entry: Entry) -> pd.DataFrame:
        """Records without attack, one row a query."""

    @abstractmethod
    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        """Records of a run, one row a query and entry.

        Args:
            keep: receives the output of the attack, chunk by chunk.
            part: cache of the results of chunks, by which a killed run resumes; None: no cache.

        Raises:
            RuntimeError: a result beyond the threat model: a failed run, never a number.
        """

    def parts(
        self,
        run: AttackRun,
        *,
        keep: Keep | None = None,
        part: Part | None = None,
        numbers: Container[int] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Results of the chunks of a run, those of ``numbers`` alone where they are given; see `attacked`."""
        cached = part or uncached
        for number, rows in enumerate(self.chunks()):
            if numbers is None or number in numbers:
                yield cached(f"{run.part}/{number:05d}", partial(self.attack_chunk, run, rows, keep))
                self.on_chunk(len(rows))

    @abstractmethod
    def attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        """Result of a run on the images ``rows`` (B,), of which `attacked` makes records."""

    @abstractmethod
    def chance(self) -> dict[str, float]:
        """Recall@1 of a random ranking, by direction."""

    @abstractmethod
    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        """Examples of ``run``, spread evenly over the set; ``records`` are those of the run."""

    @abstractmethod
    def subject(self, entry: Entry, samples: int) -> Subject:
        """Subject of diagnostics: ``samples`` images, spread evenly over the set."""

    @abstractmethod
    def timing(self, model: Any, rows: Tensor, threat: ThreatModel) -> Timing:
        """Passes of ``model`` on the images ``rows`` that can be timed."""

    @abstractmethod
    def problem(self, norm: str, randomised: bool) -> Problem:
        """What a search of one image and its captions is run on."""

    def shorten(self, count: int, why: str) -> None:
        """Judge the first ``count`` images alone; tables and report say ``why``."""
        self.image_rows, self.shortened = self.image_rows[:count], why

    @property
    def captions_per_image(self) -> float:
        """Mean number of captions of an image; 0 of classes."""
        return 0.0

    @abstractmethod
    def answers(self, model: Any, images: Tensor) -> Tensor:
        """Logits or image embeddings (B,K) of one pass; two that differ mark a randomised model."""

    @property
    def several(self) -> bool:
        """True where a query has positives beyond those that were written for it."""
        return False

    @abstractmethod
    def describe(self) -> list[str]:
        """Sentences on the data and the protocol, for the report."""

    def inputs(self, models: Iterable[Any]) -> list[str]:
        """Sentences on what is done to the data before a network sees them, by their reader and by ``models``, each
        once.
        """
        height, width = self.data.images(self.image_rows[:1]).shape[-2:]
        told = [note for model in models for note in self.model_notes(model, int(height), int(width))]
        return [*self.data.notes, *dict.fromkeys(told)]

    def resizes(self, models: Iterable[Any]) -> bool:
        """True where one of ``models`` takes images of another size than the set's."""
        height, width = self.data.images(self.image_rows[:1]).shape[-2:]
        return any(resizing(height, width, getattr(model, "image_size", None)) for model in models)

    def images(self, model: Any, rows: Tensor) -> Tensor:
        """Images (B,C,H,W) of ``rows`` as an attack on ``model`` gets them, where the model is."""
        images = self.data.images(rows).to(model.device)
        return model.sized(images).clamp(0.0, 1.0) if self.at_model else images

    def model_notes(self, model: Any, height: int, width: int) -> list[str]:
        """Sentences on what ``model`` does to images of ``height`` x ``width`` pixels, and to captions."""
        return list(model.notes(height, width)) if hasattr(model, "notes") else []

    def entry(self, label: str, model: Any, defence: str | None = None) -> Entry:
        """Entry of a model, put in eval mode; its first images decide if it is randomised, unless it declares it."""
        model.eval()
        probe = self.images(model, self.image_rows[:8])
        with frozen(model), torch.no_grad():
            randomised = getattr(model, "randomised", None)
            if not isinstance(randomised, bool):
                randomised = is_randomised(lambda images: self.answers(model, images), probe)
        entry = Entry(label=label, model=model, randomised=randomised)
        return entry if defence is None else replace(entry, defence=defence)

    def chunks(self) -> Iterator[Tensor]:
        """Rows of all images, in chunks of ``batch_size``."""
        yield from torch.split(self.image_rows, self.batch_size)

    def spread(self, count: int) -> Tensor:
        """Rows of ``count`` images, spread evenly over the set."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def draws(self, entry: Entry) -> int:
        """Number of fresh draws that judge a query of ``entry``; 1 of a deterministic model."""
        return self.fresh if entry.randomised else 1


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Context in which a randomised model has the same draws for every chunk, none of which an attack has seen; the
    global generators are restored.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("judge"))
        yield


def uncached(_name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """`Part` without a cache."""
    return compute()
