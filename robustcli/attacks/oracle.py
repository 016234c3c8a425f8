"""What an attack may ask of a model, and the count of what it asked.

Shapes: B rows asked for, N samples, K candidates, M captions, D embedding, T tokens, V vectors of the token table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.pairs import DualEncoderLike

ImageObjective = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W), rows (B,) -> loss (B,), to be raised
TextObjective = Callable[[Tensor, Tensor], Tensor]  # features (K,D), rows (K,) -> loss (K,), to be raised


@dataclass(frozen=True)
class Meter:
    """Counts by sample, each (N,) long on the CPU; added to in place."""

    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nan_gradients: Tensor

    @classmethod
    def of(cls, samples: int) -> "Meter":
        """All counts at 0."""
        return cls(*(torch.zeros(samples, dtype=torch.long) for _ in range(4)))

    def add_texts(self, queries: Tensor, gradients: Tensor, owner: Tensor) -> None:
        """The passes for M captions, booked on the images that own them."""
        self.queries.index_add_(0, owner.cpu(), queries)
        self.gradients.index_add_(0, owner.cpu(), gradients)


class ImageOracle:
    """An objective whose forward and backward passes are counted; gradients reach the images and nothing else."""

    def __init__(self, objective: ImageObjective, meter: Meter) -> None:
        self._objective = objective
        self.meter = meter

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """(B,) loss of each image, without gradients."""
        self._count(self.meter.queries, rows)
        with torch.no_grad():
            return self._objective(images, rows)

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,) and its gradient by the pixels; rows whose gradient holds a NaN get zeros, and are counted."""
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self._objective(images, rows)
            if loss.shape != (len(images),):
                raise ValueError(
                    f"the objective gave {tuple(loss.shape)}: expected one loss an image, ({len(images)},)"
                )
            # The sum, not the mean: the gradient of a sample must not depend on the size of its batch.
            (gradient,) = torch.autograd.grad(loss.sum(), images)
        self._count(self.meter.queries, rows)
        self._count(self.meter.gradients, rows)
        return loss.detach(), self._sound(gradient, rows)

    def _sound(self, gradient: Tensor, rows: Tensor) -> Tensor:
        size = gradient.flatten(1).abs().sum(1)
        broken = ~torch.isfinite(size)
        if bool(broken.any()):
            self._count(self.meter.nan_gradients, rows[broken])
            gradient = torch.where(broken.view(-1, 1, 1, 1), torch.zeros_like(gradient), gradient)
        if bool((size == 0).any()):
            self._count(self.meter.zero_gradients, rows[size == 0])
        return gradient

    @staticmethod
    def _count(counter: Tensor, rows: Tensor) -> None:
        rows = rows.cpu()
        counter.index_add_(0, rows, torch.ones_like(rows))


class TextEncoder:
    """Captions to features, each caption once: what a search meets again costs nothing.

    Captions of like length are encoded together, since a causal tower is cropped at the last end of text of its batch.

    Args:
        model: frozen by the caller.
        chunk_tokens: tokens of one forward pass, the bound of the memory.
    """

    def __init__(self, model: DualEncoderLike, *, chunk_tokens: int | None = None) -> None:
        self.model = model
        self._table = model.token_embedding().weight
        self._chunk_tokens = chunk_tokens or (1 << 17 if self._table.is_cuda else 1 << 13)
        self.device = self._table.device
        self._row: dict[str, int] = {}
        self._features = torch.empty(0)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """(K,D) features, without gradients."""
        missing = list(dict.fromkeys(caption for caption in captions if caption not in self._row))
        if missing:
            self._remember(missing, self._encode(self.model.tokenize(missing)))
        return self._features[self._rows(captions)]

    def known(self, caption: str) -> bool:
        """Whether the features of ``caption`` are there already."""
        return caption in self._row

    def embedding_gradient(
        self, captions: Sequence[str], objective: TextObjective, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and backward pass over M captions, at least one.

        Returns:
            loss (M,), its gradient by the token embeddings (M,T',V) with T' the longest caption, and the tokens (M,T).
        """
        tokens = self.model.tokenize(captions)
        lengths = content_lengths(tokens)
        width = min(int(lengths.max()) + 1, tokens.shape[1])
        losses, features = [], []
        gradient = self._table.new_zeros(len(tokens), width, self._table.shape[1])
        for chunk in self._chunks(lengths):
            vectors = self._vectors(tokens[chunk])
            with torch.enable_grad():
                vectors.requires_grad_(True)
                encoded = self.model.encode_text(tokens[chunk], embeddings=vectors)
                loss = objective(encoded, rows[chunk.to(rows.device)])
                (slope,) = torch.autograd.grad(loss.sum(), vectors)
            gradient[chunk.to(gradient.device)] = slope[:, :width]
            losses.append(loss.detach())
            features.append(encoded.detach())
        order = torch.argsort(torch.cat(self._chunks(lengths))).to(gradient.device)
        self._remember(captions, torch.cat(features)[order])
        return torch.cat(losses)[order], gradient, tokens

    def mean_vectors(self, tokens: Tensor, spans: Tensor) -> Tensor:
        """(K,V): mean vector of the tokens of each row where ``spans`` (K,T) is True; zeros for an empty span."""
        owner, _ = torch.nonzero(spans, as_tuple=True)
        total = self._table.new_zeros(len(tokens), self._table.shape[1])
        device = self._table.device
        total.index_add_(0, owner.to(device), self._table.detach()[tokens[spans].to(device)])
        return total / spans.sum(1, keepdim=True).clamp(min=1).to(device)

    def _vectors(self, tokens: Tensor) -> Tensor:
        return self._table.detach()[tokens.to(self._table.device)]

    @torch.no_grad()
    def _encode(self, tokens: Tensor) -> Tensor:
        chunks = self._chunks(content_lengths(tokens))
        encoded = torch.cat([self.model.encode_text(tokens[chunk]) for chunk in chunks])
        return torch.empty_like(encoded).index_copy_(0, torch.cat(chunks).to(encoded.device), encoded)

    def _chunks(self, lengths: Tensor) -> list[Tensor]:
        """Row numbers by rising length, in groups of at most ``chunk_tokens`` tokens."""
        order = torch.argsort(lengths, stable=True)
        sizes, chunks, start = lengths[order].tolist(), [], 0
        while start < len(sizes):
            stop = start + 1
            while stop < len(sizes) and (stop + 1 - start) * (sizes[stop] + 1) <= self._chunk_tokens:
                stop += 1
            chunks.append(order[start:stop])
            start = stop
        return chunks

    def _remember(self, captions: Sequence[str], features: Tensor) -> None:
        fresh = {caption: row for row, caption in enumerate(captions) if caption not in self._row}
        if not fresh:
            return
        start = len(self._row)
        self._row.update({caption: start + number for number, caption in enumerate(fresh)})
        added = features[torch.tensor(list(fresh.values()), device=features.device)]
        self._features = torch.cat([self._features, added]) if start else added

    def _rows(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor(
            [self._row[caption] for caption in captions], dtype=torch.long, device=self._features.device
        )


def content_lengths(tokens: Tensor) -> Tensor:
    """(B,T) -> (B,) long: tokens before the padding, whatever the padding's id: the run of equal tokens that ends a
    row.

    Of a row without padding the last token (the end of text) is counted as the run.
    """
    if not tokens.numel():
        return torch.zeros(len(tokens), dtype=torch.long)
    same = (tokens == tokens[:, -1:]).flip(1).long().cumprod(1)
    return (tokens.shape[1] - same.sum(1)).cpu()
