"""Image-text retrieval: rank of the best true match, recall, and the two definitions of an attack's success.

Shapes: D embedding, N images, M captions, Q queries of one direction, G gallery of that direction.

Ties. An encoder that maps everything to one point must score chance, not 100 %. Scores are taken in float64 and rounded
to 2^-20 of the largest possible score (finer differences are noise of float32 embeddings); equal scores are ordered by
a fixed shuffled order of the gallery that starts at another place for every query. So a rank is an integer of a real
ranking, the same for every chunk size, and under ties its recall is that of a random ranking.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from robustcli.utils.relevance import Relevance
from robustcli.utils.seeding import generator

KEYS = {"cpu": 1 << 20, "cuda": 1 << 25}  # scores held at once, in float64: what the cache of a CPU holds, or 256 MiB
ROWS = 1 << 13  # features that are read at once beside them
STEPS_PER_UNIT = 1 << 20  # resolution of a score


@dataclass(frozen=True)
class Ranks:
    """Rank (1 is best) of the best true match, long, on the CPU.

    ``image_to_text`` (N,) among the captions, ``text_to_image`` (M,) among the images.
    """

    image_to_text: Tensor
    text_to_image: Tensor


@dataclass(frozen=True)
class Ranking:
    """Figures of each query (Q,) of one direction, on the CPU, where R is the number of its true items.

    Attributes:
        rank: long, of the best true item, 1 is best.
        map_at_r: float64, mean over the first R places of the precision there, 0 where the item is false (Musgrave et
            al. 2020, equation 2; Chun et al. 2022).
        r_precision: float64, share of true items among the first R.
        positives: long, R.
    """

    rank: Tensor
    map_at_r: Tensor
    r_precision: Tensor
    positives: Tensor


@dataclass(frozen=True)
class Recall:
    """One figure for each direction, shares in [0,1]."""

    image_to_text: float
    text_to_image: float


@dataclass(frozen=True)
class SuccessRate:
    """Success rate of an attack, ``numerator / denominator``, both counts of queries."""

    numerator: int
    denominator: int

    @property
    def value(self) -> float | None:
        """The rate; None where the denominator is 0."""
        return self.numerator / self.denominator if self.denominator else None


def ranks(image_features: Tensor, text_features: Tensor, relevance: Relevance, *, chunk: int | None = None) -> Ranks:
    """Ranks of the best true match: of every image among all captions and of every caption among all images.

    Args:
        image_features: (N,D) embeddings; any scale, the score is the dot product.
        text_features: (M,D) embeddings.
        relevance: (N,M); any true match counts.
        chunk: queries scored at once; None: as many as the memory of `ranking` allows. The ranks do not depend on it.

    Raises:
        ValueError: NaN or infinite embeddings, shapes that do not fit, a query without a true match in the gallery.
    """
    return Ranks(
        image_to_text=first_true_rank(image_features, text_features, relevance, chunk=chunk),
        text_to_image=first_true_rank(text_features, image_features, relevance.T, chunk=chunk),
    )


def first_true_rank(
    queries: Tensor,
    gallery: Tensor,
    relevance: Relevance,
    *,
    replaced: tuple[Tensor, Tensor, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """(Q,) long: rank of the best true item of the gallery (G,D) for each query (Q,D); see `ranking`."""
    return ranking(queries, gallery, relevance, replaced=replaced, chunk=chunk).rank


def ranking(
    queries: Tensor,
    gallery: Tensor,
    relevance: Relevance,
    *,
    replaced: tuple[Tensor, Tensor, Tensor] | None = None,
    chunk: int | None = None,
) -> Ranking:
    """Ranks of the queries (Q,D) in the gallery (G,D), and the measures of all of their true items.

    One direction of :func:`ranks`, with the same limits; ``relevance`` is (Q,G). It costs the Q x G dot products in
    float64 and a few operations on each, on the device of the features. Beside these it holds some blocks of `KEYS`
    scores and a few numbers a query and an item, whatever Q and G are.

    Args:
        replaced: (P,) query rows, (P,) gallery rows and (P,) scores (dot products) that stand in for the computed ones.

    Raises:
        ValueError: as :func:`ranks`, or replaced scores that are NaN or infinite.
    """
    # No dot product is larger (Cauchy-Schwarz), so scaled scores lie in [-1,1]. All embeddings at 0 would give 0/0.
    scale = _largest_norm(queries, "query") * _largest_norm(gallery, "gallery") or 1.0
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and the gallery has {gallery.shape[1]}")
    if relevance.shape != (shape := (len(queries), len(gallery))):
        raise ValueError(f"relevance is {relevance.shape}, expected {shape}")
    unmatched = int((relevance.counts == 0).sum())
    if unmatched:
        raise ValueError(f"{unmatched} queries have no true match in the gallery: recall is not defined for them")
    instead = None if replaced is None else _Replaced(*replaced, len(gallery))
    search = _Search(queries.detach(), gallery.detach(), relevance.to("cpu"), scale, instead)
    rows = torch.split(torch.arange(len(queries)), chunk or search.queries_at_once)
    return Ranking(*(torch.cat(each).cpu() for each in zip(*map(search.figures, rows), strict=True)))


def recall_at_k(query_ranks: Tensor, k: int) -> float:
    """Share in [0,1] of the queries (Q,) whose best true match stands among the first ``k`` (R@k).

    Raises:
        ValueError: ``k`` below 1, or no query.
    """
    return float(_hits(query_ranks, k).double().mean())


def chance_recall(relevance: Relevance, k: int) -> Recall:
    """Expected recall at ``k`` of a uniformly random ranking, both ways; ``relevance`` is (N,M)."""
    n, m = relevance.shape
    return Recall(_random_hit(relevance.counts.cpu(), m, k), _random_hit(relevance.T.counts.cpu(), n, k))


def same_text_ceiling(relevance: Relevance, captions: Sequence[str]) -> tuple[int, Recall]:
    """Captions whose text is true of other images elsewhere, and the recall@1 that no model can pass for that reason.

    Equal texts have equal scores. So of the captions of one text only those of the image that stands first are hit;
    and an image that puts a text first meets one of its captions at random.

    Args:
        relevance: (N,M).
        captions: M texts.

    Returns:
        The number of such captions, and the expected recall of the best ranking.
    """
    numbers: dict[str, int] = {}
    text = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    true, counts = relevance.to("cpu"), torch.bincount(text)
    # The captions of a text that are true of an image, of each image and text that have one.
    codes, owned = torch.unique(true.queries * len(counts) + text[true.items], return_counts=True)
    image, of_text = torch.div(codes, len(counts), rounding_mode="floor"), codes.remainder(len(counts))
    most = torch.zeros_like(counts).scatter_reduce_(0, of_text, owned, "amax")
    best = torch.zeros(len(true)).scatter_reduce_(0, image, owned / counts[of_text], "amax")
    repeated = counts > 1
    ambiguous = int(counts[repeated & (most < counts)].sum())
    hit = int((~repeated).sum()) + float(most[repeated].sum())
    return ambiguous, Recall(image_to_text=float(best.mean()), text_to_image=hit / len(captions))


def attack_success_drop(clean_correct: Tensor, adversarial_correct: Tensor) -> SuccessRate:
    """Clean recall minus adversarial recall over all queries (Q,) bool, as in Co-Attack (Zhang et al. 2022).

    Raises:
        ValueError: tensors of another type, or of different queries.
    """
    clean, adversarial = _paired(clean_correct, adversarial_correct)
    return SuccessRate(int(clean.sum()) - int(adversarial.sum()), len(clean))


def attack_success_flip(clean_correct: Tensor, adversarial_correct: Tensor) -> SuccessRate:
    """Share of the queries (Q,) bool that this model had right and the attack made wrong, as in SGA (Lu et al. 2023).

    The denominator is the attacked model's own clean hits, never another model's; where it has none the rate is None.

    Raises:
        ValueError: tensors of another type, or of different queries.
    """
    clean, adversarial = _paired(clean_correct, adversarial_correct)
    return SuccessRate(int((clean & ~adversarial).sum()), int(clean.sum()))


class _Replaced:
    """Scores (P,) that stand in for the computed ones of pairs of a query and one of ``size`` items."""

    def __init__(self, queries: Tensor, items: Tensor, scores: Tensor, size: int) -> None:
        if not bool(scores.isfinite().all()):
            raise ValueError("scores hold NaN or infinite values: they have no rank")
        self.codes, order = torch.sort(queries.cpu() * size + items.cpu())
        self.scores, self.size = scores.detach().cpu().double()[order], size

    def put(self, rows: Tensor, true: Relevance, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the block ``rows``, items and scores of its true pairs, then of its replaced ones."""
        bounds = torch.searchsorted(self.codes, torch.stack([rows[0], rows[-1] + 1]) * self.size)
        own = slice(*bounds.tolist())
        codes, values = self.codes[own], self.scores[own]
        if not len(codes):
            return true.queries, true.items, scores
        wanted = rows[true.queries] * self.size + true.items
        at = torch.searchsorted(codes, wanted).clamp_(max=len(codes) - 1)
        scores = torch.where(codes[at] == wanted, values[at], scores)
        pair_rows = torch.div(codes, self.size, rounding_mode="floor")
        items = torch.cat([true.items, codes - pair_rows * self.size])
        return torch.cat([true.queries, pair_rows - rows[0]]), items, torch.cat([scores, values])


class _Search:
    """Queries (Q,D) before a gallery (G,D), in blocks of either.

    A score of `STEPS_PER_UNIT` and its place in the order that breaks ties make one key, an integer that only one item
    has for a query. Items are read in that order: the one at place ``p`` stands ``p`` below its score, and from the
    place ``cut`` of a query on G above that, since there the order begins for it. float64 holds a key exactly.
    """

    def __init__(
        self, queries: Tensor, gallery: Tensor, relevance: Relevance, scale: float, replaced: _Replaced | None
    ) -> None:
        self.device = torch.device("cpu") if queries.device.type == "mps" else queries.device  # mps has no float64
        self.queries, self.gallery, self.relevance, self.replaced = queries, gallery, relevance, replaced
        self.unit, self.size = scale / STEPS_PER_UNIT, len(gallery)
        self.place = torch.randperm(self.size, generator=generator("ties", "order"))
        self.item_at = torch.argsort(self.place)
        self.cut = self.size - torch.randint(self.size, (len(queries),), generator=generator("ties", "shifts"))
        keys = KEYS["cuda" if self.device.type == "cuda" else "cpu"]
        self.items_at_once = math.isqrt(keys)
        self.queries_at_once = max(1, min(self.items_at_once, keys // relevance.most))

    def figures(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fields of `Ranking` of the queries ``rows`` (B,), which follow each other."""
        queries, true, most = self._double(self.queries, rows), self.relevance[rows], self.relevance.most
        cut = self.cut[rows, None].to(self.device)
        pair_rows, pair_places, pair_keys = self._known(queries, rows, true, cut)
        # Infinite where a query has fewer true items than others, which is above all of its keys.
        true_keys = torch.full((len(rows), most), torch.inf, dtype=torch.float64, device=self.device)
        place = (torch.arange(len(true.items)) - true.offsets[true.queries]).to(self.device)
        true_keys[pair_rows[: len(place)], place] = pair_keys[: len(place)]
        true_keys = true_keys.sort(dim=1).values
        positives = true.counts.to(self.device)
        best = true_keys.gather(1, positives[:, None] - 1)
        order = torch.argsort(pair_places)
        pair_rows, pair_places, pair_keys = pair_rows[order], pair_places[order], pair_keys[order]
        starts = torch.arange(0, self.size + self.items_at_once, self.items_at_once, device=self.device)
        bounds = pairwise(torch.searchsorted(pair_places, starts).tolist())
        better, first = torch.zeros_like(positives), true_keys[:, :0]
        for items, (start, stop) in zip(torch.split(self.item_at, self.items_at_once), bounds, strict=True):
            places = self.place[items].to(self.device)
            keys = self._keys(queries @ self._double(self.gallery, items).T, places, cut)
            # A true item has the one key everywhere, also where a product of another shape rounds it otherwise.
            keys[pair_rows[start:stop], pair_places[start:stop] - places[0]] = pair_keys[start:stop]
            better += (keys > best).sum(1)
            first = torch.cat([first, keys.topk(min(most, len(items)), dim=1).values], dim=1)
            first = first.topk(min(most, first.shape[1]), dim=1).values
        hits = true_keys.gather(1, torch.searchsorted(true_keys, first).clamp_(max=most - 1)) == first
        place = torch.arange(1, most + 1, device=self.device)
        hits = (hits & (place <= positives[:, None])).double()
        precision = hits.cumsum(dim=1) / place
        return better + 1, (precision * hits).sum(dim=1) / positives, hits.sum(dim=1) / positives, positives

    def _known(self, queries: Tensor, rows: Tensor, true: Relevance, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the block, places and keys (P,) of the pairs that are scored apart: true ones, then replaced ones."""
        parts = zip(torch.split(true.queries.to(self.device), ROWS), torch.split(true.items, ROWS), strict=True)
        scores = torch.cat([(queries[of] * self._double(self.gallery, items)).sum(1) for of, items in parts]).cpu()
        pair_rows, items = true.queries, true.items
        if self.replaced is not None:
            pair_rows, items, scores = self.replaced.put(rows, true, scores)
        pair_rows, places, scores = (each.to(self.device) for each in (pair_rows, self.place[items], scores))
        return pair_rows, places, self._keys(scores, places, cut[pair_rows, 0])

    def _keys(self, scores: Tensor, places: Tensor, cut: Tensor) -> Tensor:
        """Keys of scores, in their memory."""
        return scores.div_(self.unit).round_().add_(places >= cut).mul_(self.size).sub_(places)

    def _double(self, features: Tensor, rows: Tensor) -> Tensor:
        return features[rows.to(features.device)].to(self.device, torch.float64)


def _largest_norm(features: Tensor, what: str) -> float:
    """The largest L2 norm of the rows of features (N,D), in float64; raises `ValueError` where one has no norm."""
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{what} embeddings have shape {tuple(features.shape)}, expected (items, dimensions)")
    blocks = torch.split(features.detach(), ROWS)
    bad = int(torch.stack([(~torch.isfinite(block)).any(dim=1).sum() for block in blocks]).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} {what} embeddings hold NaN or infinite values: they have no rank")
    device = "cpu" if features.device.type == "mps" else features.device  # no float64 on mps
    return float(torch.stack([block.to(device, torch.float64).norm(dim=1).max() for block in blocks]).max())


def _random_hit(true_counts: Tensor, gallery: int, k: int) -> float:
    """Mean over queries of 1 - P(the first k of a random order are all false), by the hypergeometric product."""
    missed = torch.ones(len(true_counts), dtype=torch.float64)
    for drawn in range(min(k, gallery)):
        missed *= ((gallery - true_counts - drawn).clamp(min=0) / (gallery - drawn)).double()
    return float((1 - missed).mean())


def _hits(query_ranks: Tensor, k: int) -> Tensor:
    if k < 1 or query_ranks.numel() == 0:
        raise ValueError(f"recall needs k >= 1 and at least one query, got k={k} and {query_ranks.numel()} queries")
    return query_ranks <= k


def _paired(clean: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    if clean.shape != adversarial.shape or clean.dtype != torch.bool or adversarial.dtype != torch.bool:
        raise ValueError(
            f"expected two bool tensors of the same queries, got {tuple(clean.shape)} {clean.dtype}"
            f" and {tuple(adversarial.shape)} {adversarial.dtype}"
        )
    return clean, adversarial
