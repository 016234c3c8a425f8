"""Image-text retrieval: rank of the best true match, recall, and the two definitions of an attack's success.

Shapes: D embedding, N images, M captions, Q queries of one direction, G gallery of that direction.

Ties. An encoder that maps everything to one point must score chance, not 100 %. Scores are taken in float64 and rounded
to 2^-20 of the largest possible score (finer differences are noise of float32 embeddings); equal scores are ordered by
a fixed shuffled order of the gallery that starts at another place for every query. So a rank is an integer of a real
ranking, the same for every chunk size, and under ties its recall is that of a random ranking.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.utils.seeding import generator

BLOCK_SCORES = 1 << 22  # scores held at once where ``chunk`` is None: about 150 MB with the temporaries
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


def ranks(image_features: Tensor, text_features: Tensor, relevance: Tensor, *, chunk: int | None = None) -> Ranks:
    """Ranks of the best true match: of every image among all captions and of every caption among all images.

    Args:
        image_features: (N,D) embeddings; any scale, the score is the dot product.
        text_features: (M,D) embeddings.
        relevance: (N,M) bool; any true match counts.
        chunk: queries scored at once; None bounds the memory whatever N and M are. The ranks do not depend on it.

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
    relevance: Tensor,
    *,
    replaced: tuple[Tensor, Tensor, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """(Q,) long: rank of the best true item of the gallery (G,D) for each query (Q,D).

    One direction of :func:`ranks`, with the same limits and errors; ``relevance`` is (Q,G). It costs the Q x G dot
    products in float64 and one comparison of each.

    Args:
        replaced: (P,) query rows, (P,) gallery rows and (P,) scores (dot products) that stand in for the computed ones.

    Raises:
        ValueError: as :func:`ranks`, or replaced scores that are NaN or infinite.
    """
    blocks = [_rank_of_best(keys, true) for keys, true in _blocks(queries, gallery, relevance, replaced, chunk)]
    return torch.cat(blocks).cpu()


def ranking(
    queries: Tensor,
    gallery: Tensor,
    relevance: Tensor,
    *,
    replaced: tuple[Tensor, Tensor, Tensor] | None = None,
    chunk: int | None = None,
) -> Ranking:
    """`first_true_rank` with the measures of all true items; arguments and errors are the same."""
    parts = []
    for keys, true in _blocks(queries, gallery, relevance, replaced, chunk):
        rank, positives = _rank_of_best(keys, true), true.sum(dim=1)
        most = int(positives.max())
        hits = true.gather(1, keys.topk(most, dim=1).indices)
        place = torch.arange(1, most + 1, device=keys.device)
        hits = (hits & (place <= positives[:, None])).double()
        precision = hits.cumsum(dim=1) / place
        parts.append((rank, (precision * hits).sum(dim=1) / positives, hits.sum(dim=1) / positives, positives))
    return Ranking(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def recall_at_k(query_ranks: Tensor, k: int) -> float:
    """Share in [0,1] of the queries (Q,) whose best true match stands among the first ``k`` (R@k).

    Raises:
        ValueError: ``k`` below 1, or no query.
    """
    return float(_hits(query_ranks, k).double().mean())


def chance_recall(relevance: Tensor, k: int) -> Recall:
    """Expected recall at ``k`` of a uniformly random ranking, both ways; ``relevance`` is (N,M) bool."""
    (n, m), true = relevance.shape, relevance.cpu()
    return Recall(_random_hit(true.sum(dim=1), m, k), _random_hit(true.sum(dim=0), n, k))


def same_text_ceiling(relevance: Tensor, captions: Sequence[str]) -> tuple[int, Recall]:
    """Captions whose text is true of other images elsewhere, and the recall@1 that no model can pass for that reason.

    Equal texts have equal scores. So of the captions of one text only those of the image that stands first are hit;
    and an image that puts a text first meets one of its captions at random.

    Args:
        relevance: (N,M) bool.
        captions: M texts.

    Returns:
        The number of such captions, and the expected recall of the best ranking.
    """
    numbers: dict[str, int] = {}
    text = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    true, counts = relevance.cpu(), torch.bincount(text)
    repeated = counts[text] > 1  # (M,); the texts that stand once need no table of images by texts
    rows, of_row = torch.unique(text[repeated], return_inverse=True)
    owned = torch.zeros(len(true), len(rows)).index_add_(1, of_row, true[:, repeated].float())
    most = owned.amax(0)
    alone = true[:, ~repeated].any(1)
    best = torch.where(alone, 1.0, (owned / counts[rows]).amax(1)) if len(rows) else torch.ones(len(true))
    hit = int((~repeated).sum()) + float(most.sum())
    ambiguous = int(counts[rows][most < counts[rows]].sum())
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


def _blocks(
    queries: Tensor,
    gallery: Tensor,
    relevance: Tensor,
    replaced: tuple[Tensor, Tensor, Tensor] | None,
    chunk: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys without ties (B,G) and relevance (B,G) of some queries at a time."""
    query_rows, gallery_rows = _checked(queries, "query"), _checked(gallery, "gallery")
    if query_rows.shape[1] != gallery_rows.shape[1]:
        raise ValueError(f"queries have {query_rows.shape[1]} dimensions and the gallery has {gallery_rows.shape[1]}")
    shape = (len(query_rows), len(gallery_rows))
    if tuple(relevance.shape) != shape or relevance.dtype != torch.bool:
        raise ValueError(f"relevance is {tuple(relevance.shape)} {relevance.dtype}, expected {shape} torch.bool")
    # No dot product is larger (Cauchy-Schwarz), so scaled scores lie in [-1,1]. All embeddings at 0 would give 0/0.
    scale = float(query_rows.norm(dim=1).max() * gallery_rows.norm(dim=1).max()) or 1.0
    order, shifts = _tie_order(len(query_rows), len(gallery_rows))
    step = chunk or max(1, BLOCK_SCORES // len(gallery_rows))
    for start in range(0, len(query_rows), step):
        rows = slice(start, min(start + step, len(query_rows)))
        scores = query_rows[rows] @ gallery_rows.T / scale
        if replaced is not None:
            _replace(scores, rows, replaced, scale)
        keys = _strict_keys(scores, order, shifts[rows])
        yield keys, relevance[rows].to(keys.device)


def _checked(features: Tensor, what: str) -> Tensor:
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"{what} embeddings have shape {tuple(features.shape)}, expected (items, dimensions)")
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} {what} embeddings hold NaN or infinite values: they have no rank")
    device = "cpu" if features.device.type == "mps" else features.device  # no float64 on mps
    return features.detach().to(device=device, dtype=torch.float64)


def _replace(scores: Tensor, rows: slice, replaced: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    queries, items, values = (each.to(scores.device) for each in replaced)
    if not bool(values.isfinite().all()):
        raise ValueError("scores hold NaN or infinite values: they have no rank")
    here = (queries >= rows.start) & (queries < rows.stop)
    scores[queries[here] - rows.start, items[here]] = values[here].to(scores.dtype) / scale


def _tie_order(queries: int, gallery: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(gallery, generator=generator("ties", "order"))
    shifts = torch.randint(gallery, (queries,), generator=generator("ties", "shifts"))
    return order, shifts


def _strict_keys(scores: Tensor, order: Tensor, shifts: Tensor) -> Tensor:
    """Integers without ties that sort as the rounded scores do: (Q,G) long."""
    # The place (0 to G-1) breaks ties below one step of the rounded score: 2^20 G stays far within int64.
    size = len(order)
    place = (order.to(scores.device)[None, :] + shifts.to(scores.device)[:, None]).remainder_(size)
    return (scores * STEPS_PER_UNIT).round_().long().mul_(size).sub_(place)


def _rank_of_best(keys: Tensor, true: Tensor) -> Tensor:
    unmatched = int((~true.any(dim=1)).sum())
    if unmatched:
        raise ValueError(f"{unmatched} queries have no true match in the gallery: recall is not defined for them")
    best = keys.masked_fill(~true, torch.iinfo(torch.long).min).amax(dim=1, keepdim=True)
    return 1 + (keys > best).sum(dim=1)


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
