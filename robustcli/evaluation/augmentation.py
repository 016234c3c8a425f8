"""Measures of augmented pairs before a model is trained with them: alignment, diversity, distribution gap.

A frozen reference model stands in for a judge. Each figure weighs the items of the set equally, whatever the number of
their pairs, and its interval is one over items.

Shapes: P augmented pairs, I items, J own captions of the items, R pairs of features, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.data.augment import Augmented, StoredPair
from robustcli.data.base import ImageTextData
from robustcli.evaluation.caption_measures import CaptionMeasures, figure, mean_figure, per_item
from robustcli.evaluation.retrieval import encode_captions
from robustcli.models.text import cut_captions
from robustcli.models.tokenizer import split_words
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

SIDES = ("captions", "images")
_BLOCK = 1024  # rows of a table of scores at once


@dataclass(frozen=True)
class Quality:
    """Measures of the pairs of one directory.

    Attributes:
        records: one row a pair: ``side``, ``image_id``, ``caption``, ``alignment`` and ``percentile``, distance
            ``to_original``, ``edits``, ``words``, ``true``.
        figures: one row a side, each figure with ``_low`` and ``_high``.
    """

    records: pd.DataFrame
    figures: pd.DataFrame


@dataclass(frozen=True)
class _Originals:
    """Features of the sampled items: images (I,D), their own captions (J,D) and the item of each (J,)."""

    images: Tensor
    captions: Tensor
    rows: Tensor
    item: Tensor


@dataclass(frozen=True)
class _Encoded:
    """Features of all images and of all captions of a sample: those of its items, and the new ones after them."""

    original: _Originals
    images: Tensor
    captions: Tensor

    def side(self, side: str) -> tuple[Tensor, Tensor, Tensor]:
        """The new ones of a side, the old ones, and the items of the old ones."""
        original = self.original
        if side == "images":
            return self.images[len(original.images) :], original.images, torch.arange(len(original.images))
        return self.captions[len(original.captions) :], original.captions, original.item


class QualityEvaluator:
    """Evaluator of augmented pairs of ``data`` by a frozen ``reference``.

    Args:
        data: the set that the pairs were made for.
        reference: dual encoder in evaluation mode; not the one that will be trained.
        items: images of the set that are measured at most, the first in an order drawn by the seed among those that
            have augmented pairs: the same for directories that augment the same images.
        batch_size: images encoded at once.
        resamples: of the bootstrap.
        seed: of the sample and of the intervals.
    """

    def __init__(
        self, data: ImageTextData, reference: Any, *, items: int, batch_size: int, resamples: int, seed: int
    ) -> None:
        self.data, self.reference, self.items, self.batch_size = data, reference, items, batch_size
        self.resamples, self.seed = resamples, seed
        self._order = torch.randperm(len(data), generator=generator("augmentation quality", seed)).tolist()
        self._own = data.captions_of()
        self.vocabulary = {word for caption in data.captions for word in split_words(caption)}
        self._originals: dict[tuple[int, ...], _Originals] = {}
        try:
            self.self_bleu: metrics.SelfBLEU | None = metrics.SelfBLEU()
            self.left_out: list[str] = []
        except UserError as error:
            self.self_bleu, self.left_out = None, [f"Self-BLEU is left out: {error}"]

    def measure(self, augmented: Augmented) -> Quality:
        """Measures of the pairs of ``augmented``, for new captions, new images, or both."""
        sample = _Sample(augmented, self._own, self._order, self.items)
        encoded = self._encode(augmented, sample)
        images, captions = encoded.images[sample.image], encoded.captions[sample.caption]
        item = sample.item[sample.pair]
        rows = {
            "alignment": (images * captions).sum(1),
            "percentile": _percentiles(images, captions, item, encoded.original.images),
        }
        values = {name: per_item(sample.pair, len(sample.stored), each) for name, each in rows.items()}
        parts = [
            _Part(self, sample, encoded, values, side)
            for side in SIDES
            if any(getattr(pair, side[:-1]) is not None for pair in sample.stored)
        ]
        records = pd.concat([part.records() for part in parts], ignore_index=True)
        return Quality(records, pd.DataFrame([part.figures() for part in parts]))

    def _features_of(self, items: Sequence[int]) -> _Originals:
        """Features of the items themselves, which the directories share where they augment the same."""
        if tuple(items) not in self._originals:
            rows = torch.cat([self._own[row] for row in items])
            counts = torch.tensor([len(self._own[row]) for row in items])
            self._originals[tuple(items)] = _Originals(
                images=self._encode_images(self.data, torch.tensor(items)),
                captions=self._encode_captions([self.data.captions[row] for row in rows.tolist()]),
                rows=rows,
                item=torch.arange(len(items)).repeat_interleave(counts),
            )
        return self._originals[tuple(items)]

    def _encode(self, augmented: Augmented, sample: "_Sample") -> "_Encoded":
        original = self._features_of(sample.items)
        images, captions = original.images, original.captions
        if sample.new_images:
            images = torch.cat([images, self._encode_images(augmented, torch.tensor(sample.new_images))])
        if sample.new_captions:
            captions = torch.cat([captions, self._encode_captions(sample.new_captions)])
        return _Encoded(original, images, captions)

    @torch.no_grad()
    def _encode_images(self, data: ImageTextData, rows: Tensor) -> Tensor:
        parts = [
            self.reference.encode_image(data.images(part).to(self.reference.device))
            for part in torch.split(rows, self.batch_size)
        ]
        return torch.cat(parts).cpu().float()

    def _encode_captions(self, captions: Sequence[str]) -> Tensor:
        return encode_captions(self.reference, captions, 4 * self.batch_size).cpu().float()


class _Sample:
    """The pairs of the sampled items, and where their images and captions stand among the features.

    Attributes:
        items: rows of the sampled images of the set, ascending.
        stored: the P pairs; ``item`` (P,) of each, from 0.
        new_images: rows in ``augmented`` of the new images; new_captions: texts.
        pair, image, caption: (R,) long, row of the pair and of the features of what it shows and says; a pair without
            a caption of its own has a row for each of its item.
        source: for each pair the rows of the features of the captions that it may be compared with.
    """

    def __init__(self, augmented: Augmented, own: Sequence[Tensor], order: Sequence[int], most: int) -> None:
        data = augmented.base
        row_of = {name: row for row, name in enumerate(data.image_ids)}
        present = {row_of[pair.source] for pair in augmented.stored}
        self.items = sorted([row for row in order if row in present][:most])
        place = {row: at for at, row in enumerate(self.items)}
        starts = np.cumsum([0, *(len(own[row]) for row in self.items)]).tolist()
        self.stored: list[StoredPair] = []
        items, self.new_images, self.new_captions = list[int](), list[int](), list[str]()
        self.source: list[list[int]] = []
        rows: list[tuple[int, int, int]] = []
        next_image = len(data)
        for pair in augmented.stored:
            item = place.get(row_of[pair.source])
            if item is not None:
                every = list(range(starts[item], starts[item + 1]))
                source = every if pair.source_caption is None else [every[pair.source_caption]]
                shown, said = item, source
                if pair.image is not None:
                    shown = len(self.items) + len(self.new_images)
                    self.new_images.append(next_image)
                if pair.caption is not None:
                    said = [starts[-1] + len(self.new_captions)]
                    self.new_captions.append(pair.caption)
                rows += [(len(self.stored), shown, each) for each in said]
                self.stored.append(pair)
                self.source.append(source)
                items.append(item)
            next_image += pair.image is not None
        self.item = torch.tensor(items)
        self.pair, self.image, self.caption = torch.tensor(rows).T


class _Part:
    """The pairs of a sample that are new on one side, and their figures."""

    def __init__(
        self, evaluator: QualityEvaluator, sample: _Sample, encoded: "_Encoded", values: Mapping[str, Tensor], side: str
    ) -> None:
        new = torch.tensor([getattr(pair, side[:-1]) is not None for pair in sample.stored])
        self.evaluator, self.side, self.original = evaluator, side, encoded.original
        self.stored = [pair for pair, is_new in zip(sample.stored, new.tolist(), strict=True) if is_new]
        self.source = [rows for rows, is_new in zip(sample.source, new.tolist(), strict=True) if is_new]
        self.item, self.size = sample.item[new], len(sample.items)
        self.values = {name: each[new] for name, each in values.items()}
        self.features, self.old, self.of_old = encoded.side(side)
        self.kept = torch.bincount(self.item, minlength=self.size) > 0
        self.values["to_original"] = 1 - self._to_original()
        self.intervals: dict[str, Any] = {"resamples": evaluator.resamples, "seed": evaluator.seed}
        self.captions = self._caption_measures() if side == "captions" else None

    def records(self) -> pd.DataFrame:
        """One row a pair."""
        columns: dict[str, Any] = {name: values.numpy() for name, values in self.values.items()}
        if self.captions is not None:
            columns |= {
                "edits": self.captions.edits().numpy(),
                "words": [float(len(words)) for words in self.captions.new],
            }
        return pd.DataFrame(
            {
                "side": self.side,
                "image_id": [pair.source for pair in self.stored],
                "caption": pd.array([pair.caption for pair in self.stored], dtype="string"),
                **columns,
                "true": pd.array([pair.true for pair in self.stored], dtype="boolean"),
            }
        )

    def figures(self) -> dict[str, Any]:
        """Every figure with its interval."""
        count = int(self.kept.sum())
        figures: dict[str, Any] = {"side": self.side, "pairs": len(self.stored), "items": count}
        figures |= {"per_item": len(self.stored) / count, **self._alignment(), **self._truth()}
        figures |= self._diversity() | self._gap()
        if self.captions is None:
            return figures
        texts = [str(pair.caption) for pair in self.stored]
        cut = cut_captions(self.evaluator.reference.tokenizer, texts) / len(texts)
        return figures | self.captions.figures() | {"cut_share": cut}

    def _alignment(self) -> dict[str, Any]:
        """Cosine and rank of the pairs, and those of the own pairs of the same items."""
        original, items = self.original, torch.arange(int(self.kept.sum()))
        own_images = original.images[original.item]
        own = {
            "alignment": (own_images * original.captions).sum(1),
            "percentile": _percentiles(own_images, original.captions, original.item, original.images),
        }
        figures: dict[str, Any] = {}
        for name, values in own.items():
            new = per_item(self.item, self.size, self.values[name])[self.kept]
            old = per_item(original.item, self.size, values)[self.kept]
            share = name == "percentile"
            figures |= mean_figure(name, new, **self.intervals, share=share)
            figures |= mean_figure(f"{name}_original", old, **self.intervals, share=share)
            if name == "alignment":
                figures |= figure(f"{name}_difference", metrics.bootstrap_difference(new, old, items, **self.intervals))
                figures |= figure(f"{name}_ratio", metrics.bootstrap_ratio(new, old, items, **self.intervals))
        return figures

    def _truth(self) -> dict[str, Any]:
        """Share of true pairs among those of which the set knows it."""
        known = torch.tensor([pair.true is not None for pair in self.stored])
        true = torch.tensor([bool(pair.true) for pair in self.stored]).double()
        shares = per_item(self.item[known], self.size, true[known])
        return mean_figure("true_share", shares, **self.intervals, share=True)

    def _to_original(self) -> Tensor:
        """(P,): cosine of each new image to that of its item, or of each new caption to what it was made from."""
        if self.side == "images":
            return (self.features * self.old[self.item]).sum(1)
        of_pair = torch.tensor([row for row, sources in enumerate(self.source) for _ in sources])
        sources = torch.tensor([each for sources in self.source for each in sources])
        return per_item(of_pair, len(self.source), (self.features[of_pair] * self.old[sources]).sum(1))

    def _diversity(self) -> dict[str, Any]:
        """Mean of 1 - cosine between two augmentations of an item, of one to its original, and of all of these.

        ``diversity_ratio`` is the last in units of that between the originals of two items, which makes captions and
        images comparable.
        """
        features, counts = self.features.double(), torch.bincount(self.item, minlength=self.size).double()
        sums = torch.zeros(self.size, features.shape[1], dtype=torch.float64).index_add_(0, self.item, features)
        empty = torch.zeros(self.size, dtype=torch.float64)
        own = empty.index_add(0, self.item, features.square().sum(1))
        couples = counts * (counts - 1) / 2
        # Of unit features: the cosines of all couples are half of what the squared sum has beyond its own terms.
        among = (couples - (sums.square().sum(1) - own) / 2).clamp(min=0)
        apart = empty.index_add(0, self.item, self.values["to_original"].double()).clamp(min=0)
        parts = {  # 0 / 0, an item without, is NaN and does not count
            "diversity": (among + apart) / (couples + counts),
            "diversity_among": among / couples,
            "diversity_to_original": apart / counts,
        }
        if (spread := self._spread()) > 0:
            parts["diversity_ratio"] = parts["diversity"] / spread
        figures: dict[str, Any] = {}
        for name, values in parts.items():
            figures |= mean_figure(name, values, **self.intervals)
        return figures

    def _spread(self) -> float:
        """Mean of 1 - cosine between originals of different items; NaN of a single item."""
        old = self.old.double()
        sums = torch.zeros(self.size, old.shape[1], dtype=torch.float64).index_add_(0, self.of_old, old)
        counts = torch.bincount(self.of_old, minlength=self.size).double()
        couples = float(counts.sum() ** 2 - counts.square().sum())
        cosines = float(sums.sum(0).square().sum() - sums.square().sum())
        return 1 - cosines / couples if couples else float("nan")

    def _gap(self) -> dict[str, Any]:
        """Frechet distance (also in units of the variance of the originals) and MMD between the new and the own
        captions, or images, of the items.
        """
        width = metrics.median_bandwidth(self.old[: 2 * _BLOCK])
        mmd = metrics.PairedMMD(self.old, self.of_old, self.features, self.item, bandwidth=width)
        distances: dict[bytes, float] = {}  # each is computed once, for `frechet` and for `gap`

        def frechet(items: Tensor) -> float:
            key = items.numpy().tobytes()
            if key not in distances:
                first, second = self.old[(items & self.kept)[self.of_old]], self.features[items[self.item]]
                enough = min(len(first), len(second)) > 1
                distances[key] = metrics.frechet_distance(first, second) if enough else float("nan")
            return distances[key]

        def gap(items: Tensor) -> float:
            variance = float(self.old[(items & self.kept)[self.of_old]].double().var(0).sum())
            return frechet(items) / variance if variance else float("nan")

        statistics: dict[str, Callable[[Tensor], float]] = {
            "frechet": frechet,
            "gap": gap,
            "mmd": lambda items: mmd(items & self.kept),
        }
        seed = self.evaluator.seed
        intervals = {name: metrics.jackknife(each, self.size, seed=seed) for name, each in statistics.items()}
        return {column: value for name, each in intervals.items() for column, value in figure(name, each).items()}

    def _caption_measures(self) -> CaptionMeasures:
        data, original = self.evaluator.data, self.original
        return CaptionMeasures(
            new=[split_words(str(pair.caption)) for pair in self.stored],
            item=self.item,
            own=[split_words(data.captions[row]) for row in original.rows.tolist()],
            own_item=original.item,
            sources=self.source,
            vocabulary=self.evaluator.vocabulary,
            self_bleu=self.evaluator.self_bleu,
            **self.intervals,
        )


def _percentiles(images: Tensor, captions: Tensor, item: Tensor, gallery: Tensor) -> Tensor:
    """(R,): share of the images of the other items that fit the caption of a pair less than its own; ties count half.

    Args:
        images, captions: (R,D) of each pair; item: (R,) its item.
        gallery: (I,D) images of the items.
    """
    if len(gallery) < 2:
        return torch.full((len(images),), float("nan"))
    parts = []
    for start in range(0, len(images), _BLOCK):
        rows = slice(start, start + _BLOCK)
        own = (images[rows] * captions[rows]).sum(1, keepdim=True)
        scores = captions[rows] @ gallery.T
        below = (own > scores).double() + 0.5 * (own == scores).double()
        below.scatter_(1, item[rows, None], 0.0)
        parts.append(below.sum(1) / (len(gallery) - 1))
    return torch.cat(parts)
