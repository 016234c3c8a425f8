"""Oracles: the access of an attack to a model, by losses, logits, gradients or text features; passes are counted.

Shapes: B rows of a call, N samples, Y classes, K classes or candidate captions, M captions, D embedding, T tokens, V
width of the token table.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.pairs import DualEncoderLike

# Size of a pass beyond which the cost an image hardly falls: pixel values in all, or images, whichever comes first.
# Measured on two cores with the shipped networks and ResNet-20.
_FULL_PASS = {"cpu": (98_304, 128), "cuda": (786_432, 1024)}
_PASSES, _PADDING = 64, 1.15  # a chunk of 1/64 of its tokens has no text over 1.15 times its shortest
ObjectiveValue = Tensor | tuple[Tensor, Tensor]  # loss (B,), or loss and (B,) bool: the image is a success
ImageObjective = Callable[[Tensor, Tensor], ObjectiveValue]  # images (B,C,H,W), rows (B,) -> loss to maximise
LogitGradients = Callable[[Tensor, Tensor], Iterator[Tensor]]  # classes (B,K), against (B,) -> K gradients (B,C,H,W)
TextObjective = Callable[[Tensor, Tensor], Tensor]  # features (K,D), rows (K,) -> loss (K,) to maximise


class ImageOracle:
    """Access to an objective of images, passes counted; gradients are taken by the images and nothing else.

    Attributes:
        fooled: (N,) bool, True where the image last evaluated in a row is a success; False throughout where the
            objective does not report it. A search may leave such a row as it is and go on with the others. It is kept
            where the images are, so that no step waits for a GPU to tell.
    """

    def __init__(self, objective: ImageObjective, counter: QueryCounter) -> None:
        self._objective = objective
        self.counter = counter
        self.fooled = torch.zeros(len(counter.queries), dtype=torch.bool)

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """(B,) loss of each image: a forward pass, without gradients."""
        count(self.counter.queries, rows)
        with torch.no_grad():
            return self._evaluate(images, rows)

    def peek(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,), and (B,) bool: the image is a success. Nothing is noted: a search that may drop a part of the
        answers counts the passes that it uses.
        """
        with torch.no_grad():
            loss, fooled = self._evaluated(images, rows)
        return loss, torch.zeros_like(loss, dtype=torch.bool) if fooled is None else fooled

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (B,) and its gradient by the pixels: a forward and a backward pass; see `counted_gradient` for NaNs."""
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self._evaluate(images, rows)
            # The sum, not the mean: the gradient of a sample must not depend on the size of its batch.
            gradient = gradient_of(loss.sum(), images)
        rows = rows.cpu()  # once for all counts
        count(self.counter.queries, rows)
        return loss.detach(), counted_gradient(gradient, rows, self.counter)

    def repeated(self, rows: Tensor, counter: QueryCounter) -> "ImageOracle":
        """An oracle whose row ``i`` is row ``rows[i % len(rows)]`` of this one, with a counter of its own."""
        return ImageOracle(lambda images, wide: self._objective(images, rows[wide % len(rows)]), counter)

    def is_fooled(self, rows: Tensor) -> Tensor:
        """(B,) bool, ``fooled`` of the rows, on their device."""
        self.fooled = self.fooled.to(rows.device)
        return self.fooled[rows]

    def note(self, rows: Tensor, fooled: Tensor) -> None:
        """Keep (B,) bool of the rows as what was evaluated last."""
        self.fooled = self.fooled.to(rows.device)
        self.fooled[rows] = fooled

    def _evaluate(self, images: Tensor, rows: Tensor) -> Tensor:
        loss, fooled = self._evaluated(images, rows)
        if fooled is not None:
            self.note(rows, fooled)
        return loss

    def _evaluated(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        evaluated = self._objective(images, rows)
        loss, fooled = evaluated if isinstance(evaluated, tuple) else (evaluated, None)
        if loss.shape != (len(images),):
            raise ValueError(f"the objective gave {tuple(loss.shape)}: expected one loss an image, ({len(images)},)")
        return loss, fooled


class LogitOracle:
    """Access to a classifier, passes counted by sample, for searches that read the logits.

    Attributes:
        members: of each row the member of an ensemble that its result is from; empty where there is no ensemble.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); frozen by the caller.
        randomised: two passes over the same image differ, so that a single success proves nothing.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], counter: QueryCounter, *, randomised: bool = False) -> None:
        self.model, self.counter, self.randomised = model, counter, randomised
        self.members = [""] * len(counter.queries)

    @contextmanager
    def part(self, rows: Tensor) -> Iterator["LogitOracle"]:
        """Context of an oracle of ``rows`` alone, as rows 0, 1, ...; what it notes is added here at the end."""
        oracle = LogitOracle(self.model, QueryCounter.of(len(rows)), randomised=self.randomised)
        yield oracle
        self.counter.add(oracle.counter, rows)
        for row, member in zip(rows.tolist(), oracle.members, strict=True):
            self.members[row] = member or self.members[row]

    def credit(self, member: str, rows: Tensor) -> None:
        """Note that the results of ``rows`` (B,) are from ``member`` of an ensemble."""
        for row in rows.tolist():
            self.members[row] = member

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """(B,Y): a forward pass, without gradients."""
        count(self.counter.queries, rows)
        with torch.no_grad():
            return self.model(images)

    def gradient(
        self, images: Tensor, rows: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B,Y), loss (B,) and its gradient by the pixels: a forward and a backward pass; see
        `counted_gradient`.

        Args:
            loss: logits (B,Y), rows (B,) -> (B,), each of its own logits alone.
        """
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(images)
            value = loss(logits, rows)
            gradient = gradient_of(value.sum(), images)
        rows = rows.cpu()  # once for all counts
        count(self.counter.queries, rows)
        return logits.detach(), value.detach(), counted_gradient(gradient, rows, self.counter)

    def logit_gradients(self, images: Tensor, rows: Tensor) -> tuple[Tensor, LogitGradients]:
        """Logits (B,Y), and a generator of pixel gradients (B,C,H,W) of logit differences, ``classes`` less
        ``against``.

        One forward pass, and a backward pass a gradient that is drawn from the generator, all samples at once: a search
        that sees from the logits that it needs none pays for none, and only those that it keeps are held in memory.
        """
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(images)
        count(self.counter.queries, rows)

        def differences(classes: Tensor, against: Tensor) -> Iterator[Tensor]:
            with torch.enable_grad():
                columns = (logits.gather(1, classes) - logits.gather(1, against[:, None])).sum(0).unbind()
            for column in columns:
                yield counted_gradient(gradient_of(column, images, retain_graph=True), rows, self.counter)

        return logits.detach(), differences


def gradient_of(total: Tensor, inputs: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Gradient of the scalar ``total`` by ``inputs``, of their shape; zeros where no graph leads from one to the other.

    A model that cuts its graph, by a detach or a library without gradients, has the gradient zero for an attacker: the
    diagnostics call its figures suspect, which an error would leave unsaid.
    """
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    return torch.autograd.grad(total, inputs, retain_graph=retain_graph, materialize_grads=True)[0]


def counted_gradient(gradient: Tensor, rows: Tensor, counter: QueryCounter) -> Tensor:
    """The gradient (B,C,H,W), counted, with zeros for each sample where it is not finite."""
    rows = rows.cpu()
    count(counter.gradients, rows)
    l1_norm = gradient.flatten(1).abs().sum(1)
    norms = l1_norm.cpu()  # a GPU is waited for once
    not_finite, zero = ~torch.isfinite(norms), norms == 0
    if bool(not_finite.any()):
        count(counter.nan_gradients, rows[not_finite])
        gradient = torch.where(torch.isfinite(l1_norm).view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
    if bool(zero.any()):
        count(counter.zero_gradients, rows[zero])
    return gradient


def copies_per_pass(images: Tensor) -> int:
    """Number of copies of ``images`` (B,C,H,W), 1 or more, that fill a pass; a smaller pass costs more an image."""
    most_values, most_images = _FULL_PASS[images.device.type if images.is_cuda else "cpu"]
    return max(min(most_values // max(images.numel(), 1), most_images // max(len(images), 1)), 1)


def count(counter: Tensor, rows: Tensor) -> None:
    """Add one pass for each of the rows."""
    rows = rows.cpu()
    counter.index_add_(0, rows, torch.ones_like(rows))


class TextEncoder:
    """Text encoder with a cache: each caption is encoded once, what a search meets again costs nothing.

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
            self._cache(missing, self._encode(self.model.tokenize(missing)))
        return self._features[self._rows(captions)]

    def is_cached(self, caption: str) -> bool:
        """True if the features of ``caption`` are cached."""
        return caption in self._row

    def embedding_gradient(
        self, captions: Sequence[str], objective: TextObjective, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of a loss by the token embeddings: one forward and backward pass over M captions, at least one.

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
                chunk_gradient = gradient_of(loss.sum(), vectors)
            gradient[chunk.to(gradient.device)] = chunk_gradient[:, :width]
            losses.append(loss.detach())
            features.append(encoded.detach())
        order = torch.argsort(torch.cat(self._chunks(lengths))).to(gradient.device)
        self._cache(captions, torch.cat(features)[order])
        return torch.cat(losses)[order], gradient, tokens

    def mean_vectors(self, tokens: Tensor, spans: Tensor) -> Tensor:
        """(K,V): mean embedding of the tokens of each row where ``spans`` (K,T) is True; zeros for an empty span."""
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
        """Row numbers by rising length, in groups of at most ``chunk_tokens`` tokens; a group that is worth a pass of
        its own ends where padding would cost more than another pass.
        """
        order = torch.argsort(lengths, stable=True)
        sizes, chunks, start = lengths[order].tolist(), [], 0
        while start < len(sizes):
            stop = start + 1
            while stop < len(sizes) and (stop + 1 - start) * (sizes[stop] + 1) <= self._chunk_tokens:
                worth = (stop - start) * sizes[start] >= self._chunk_tokens // _PASSES
                if worth and sizes[stop] > _PADDING * sizes[start]:
                    break
                stop += 1
            chunks.append(order[start:stop])
            start = stop
        return chunks

    def _cache(self, captions: Sequence[str], features: Tensor) -> None:
        new_rows = {caption: row for row, caption in enumerate(captions) if caption not in self._row}
        if not new_rows:
            return
        start = len(self._row)
        self._row.update({caption: start + number for number, caption in enumerate(new_rows)})
        new_features = features[torch.tensor(list(new_rows.values()), device=features.device)]
        self._features = torch.cat([self._features, new_features]) if start else new_features

    def _rows(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor(
            [self._row[caption] for caption in captions], dtype=torch.long, device=self._features.device
        )


def of_words(tokens: Tensor, empty: Tensor) -> Tensor:
    """(B,T) -> (B,T) bool on the CPU: True for tokens of words, False for those that ``empty``, the tokens of an empty
    caption, has: start, end and padding, of which a tokenizer may have none, or one for two of them.
    """
    return ~torch.isin(tokens.cpu(), empty.cpu())


def content_lengths(tokens: Tensor) -> Tensor:
    """(B,T) -> (B,) long: tokens before the padding, whatever its id: padding is the run of equal tokens that ends a
    row.

    Of a row without padding the last token (the end of text) is taken for the run.
    """
    if not tokens.numel():
        return torch.zeros(len(tokens), dtype=torch.long)
    same = (tokens == tokens[:, -1:]).flip(1).long().cumprod(1)
    return (tokens.shape[1] - same.sum(1)).cpu()
