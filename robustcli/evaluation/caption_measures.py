"""Measures of new captions that need no model: diversity of the words, and their shift from the own captions.

Shapes: P new captions, J own captions, I items, V words.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks.core.edit_distance import levenshtein

Words = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class CaptionMeasures:
    """Measures of new captions of items, beside the own captions of the same items.

    Args:
        new, item: words of the P new captions, and the item (P,) of each, from 0.
        own, own_item: the same of the J own captions.
        sources: for each new caption the own captions that it may come from.
        vocabulary: words of the whole set.
        self_bleu: None leaves it out.
        resamples, seed: of the intervals.
    """

    new: Sequence[Words]
    item: Tensor
    own: Sequence[Words]
    own_item: Tensor
    sources: Sequence[Sequence[int]]
    vocabulary: Collection[str]
    self_bleu: metrics.SelfBLEU | None
    resamples: int
    seed: int

    def figures(self) -> dict[str, float | None]:
        """``distinct_1``, ``distinct_2``, ``self_bleu``, ``edits``, ``words``, ``words_difference``, ``new_word_share``
        and ``unigram_divergence`` (bits), each with ``_low`` and ``_high``.
        """
        lengths, kept = _lengths(self.new), torch.unique(self.item)
        size = 1 + int(self.own_item.max())
        new = per_item(self.item, size, lengths)[kept]
        old = per_item(self.own_item, size, _lengths(self.own))[kept]
        settings: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed}
        difference = metrics.bootstrap_difference(new, old, torch.arange(len(kept)), **settings)
        unknown = torch.tensor([float(sum(word not in self.vocabulary for word in words)) for words in self.new])
        share = metrics.bootstrap_ratio(unknown, lengths, self.item, **settings)
        return {
            **self._within_items(),
            **mean_figure("edits", per_item(self.item, size, self.edits()), **settings),
            **mean_figure("words", new, **settings),
            **figure("words_difference", difference),
            **figure("new_word_share", share),
            **figure("unigram_divergence", self._divergence(size)),
        }

    def edits(self) -> Tensor:
        """(P,): fewest words that turn a new caption into one that it may come from."""
        pairs = zip(self.new, self.sources, strict=True)
        return torch.tensor([float(min(levenshtein(words, self.own[row]) for row in rows)) for words, rows in pairs])

    def _within_items(self) -> dict[str, float | None]:
        of_item: dict[int, list[Words]] = {}
        for words, item in zip(self.new, self.item.tolist(), strict=True):
            of_item.setdefault(item, []).append(words)
        measures: dict[str, Callable[[Sequence[Words]], float | None]] = {
            "distinct_1": lambda texts: metrics.distinct_n(texts, 1),
            "distinct_2": lambda texts: metrics.distinct_n(texts, 2),
            **({} if self.self_bleu is None else {"self_bleu": self.self_bleu}),
        }
        figures: dict[str, float | None] = {}
        for name, measure in measures.items():
            values = [measure(texts) for texts in of_item.values()]
            known = torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
            share = name != "self_bleu"
            figures |= mean_figure(name, known, resamples=self.resamples, seed=self.seed, share=share)
        return figures

    def _divergence(self, size: int) -> metrics.Interval:
        """Divergence of the words of the new captions from those of the own ones of the same items."""
        from scipy.sparse import csr_array

        number: dict[str, int] = {}
        for words in [*self.own, *self.new]:
            for word in words:
                number.setdefault(word, len(number))

        def table(texts: Sequence[Words], items: Tensor) -> Any:
            """(I,V) sparse: how often each item has each word."""
            rows = [item for item, words in zip(items.tolist(), texts, strict=True) for _ in words]
            columns = [number[word] for words in texts for word in words]
            return csr_array((np.ones(len(rows)), (rows, columns)), shape=(size, max(1, len(number))))

        old, new = table(self.own, self.own_item), table(self.new, self.item)
        present = torch.bincount(self.item, minlength=size) > 0

        def divergence(items: Tensor) -> float:
            weights = (items & present).double().numpy()
            return metrics.jensen_shannon(*(torch.from_numpy(weights @ each) for each in (old, new)))

        return metrics.jackknife(divergence, size, seed=self.seed)


def per_item(item: Tensor, size: int, values: Tensor) -> Tensor:
    """(size,) float64: mean of ``values`` (P,) over those of each item (P,); NaN for an item without."""
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, item, values.double())
    counts = torch.bincount(item, minlength=size)
    return sums / counts.where(counts > 0, float("nan"))


def figure(name: str, interval: metrics.Interval) -> dict[str, float | None]:
    """``interval`` as columns."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def mean_figure(
    name: str, values: Tensor, *, resamples: int, seed: int, share: bool = False
) -> dict[str, float | None]:
    """Mean over the items (I,) as columns; an item without the figure is NaN and does not count, and no item gives no
    column.

    Args:
        share: of 0 or 1 everywhere the interval is that of a proportion; one edit in every caption is none.
    """
    known = values[~values.isnan()]
    if not len(known):
        return {}
    items, settings = torch.arange(len(known)), {"resamples": resamples, "seed": seed}
    if share:
        return figure(name, metrics.bootstrap(known, items, **settings))
    return figure(name, metrics.bootstrap_difference(known, torch.zeros_like(known), items, **settings))


def _lengths(texts: Sequence[Words]) -> Tensor:
    return torch.tensor([float(len(words)) for words in texts])
