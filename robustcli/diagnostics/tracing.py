"""Traces of an attack: norms of the gradients that it receives, and its loss pass by pass.

Shapes: B images of a pass, N images, C channels, H height, W width, K passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.averaging import EncoderWrapper
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageObjective, ImageOracle
from robustcli.attacks.core.pairs import DualEncoderLike
from robustcli.attacks.core.threat import ThreatModel


class GradientNorms:
    """Norms of all gradients by the images of a model, one for each image and backward pass.

    Args:
        norm: of the threat model. A gradient is measured in the dual norm: times eps it is the rise of the loss within
            the ball, to first order.
    """

    def __init__(self, norm: str) -> None:
        self._order = 1.0 if norm == "linf" else 2.0
        self._norms: list[Tensor] = []

    def measured(self, images: Tensor) -> Tensor:
        """A view of the images, whose gradient is measured by a hook; the images themselves where none is recorded."""
        if not images.requires_grad or not torch.is_grad_enabled():
            return images
        view = images.view_as(images)  # the hook of a view goes with its graph, that of the leaf would stay
        view.register_hook(self._measure)  # type: ignore[no-untyped-call]
        return view

    def norms(self) -> Tensor:
        """(K,) float64 on the CPU, for each image of each backward pass."""
        return torch.cat(self._norms) if self._norms else torch.zeros(0, dtype=torch.float64)

    def _measure(self, gradient: Tensor) -> None:
        flat = gradient.detach().double().flatten(1)  # squares of tiny gradients would underflow
        self._norms.append(torch.linalg.vector_norm(flat, ord=self._order, dim=1).cpu())


class TracedClassifier(nn.Module):
    """Classifier with the gradients by its images measured; its logits are those of the model."""

    def __init__(self, model: Callable[[Tensor], Tensor], norms: GradientNorms) -> None:
        super().__init__()
        self.model, self.norms = model, norms

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        return self.model(self.norms.measured(images))


class TracedEncoder(EncoderWrapper):
    """Dual encoder with the gradients by its images measured; its embeddings are those of the model."""

    def __init__(self, model: DualEncoderLike, norms: GradientNorms) -> None:
        super().__init__(model)
        self.norms = norms

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(self.norms.measured(images))


class LossTrace:
    """Loss of each of N images at each of K passes."""

    def __init__(self) -> None:
        self._passes: list[tuple[Tensor, Tensor]] = []

    def record(self, rows: Tensor, loss: Tensor) -> None:
        """Append a pass: losses (B,) of the images ``rows`` (B,)."""
        self._passes.append((rows.cpu(), loss.detach().double().cpu()))

    def best_so_far(self) -> Tensor:
        """(K,N) float64: running maximum of the loss; minus infinity before the first pass over an image."""
        count = 1 + max((int(rows.max()) for rows, _ in self._passes if len(rows)), default=-1)
        table = torch.full((len(self._passes), count), -torch.inf, dtype=torch.float64)
        for step, (rows, loss) in enumerate(self._passes):
            table[step, rows] = torch.where(loss.isnan(), -torch.inf, loss)
        best: Tensor = table.cummax(0).values
        return best


@dataclass(frozen=True, kw_only=True)
class TracedAttack(ImageAttack):
    """Image attack whose losses are traced; no sample leaves it early.

    Args:
        attack: the search.
        trace: receives the loss of every pass.
    """

    attack: ImageAttack = field(kw_only=False)
    trace: LossTrace = field(kw_only=False)
    early_stop: bool = False

    def __post_init__(self) -> None:
        self._store(loss=self.attack.loss, norm=self.attack.norm, eps=self.attack.eps, seed=self.attack.seed)
        super().__post_init__()

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        return self.attack.ascend(oracle, images, sample_ids, threat, start)

    def maximise(
        self,
        objective: ImageObjective,
        images: Tensor,
        sample_ids: Tensor,
        threat: ThreatModel | None = None,
        *,
        start: Tensor | None = None,
        counter: QueryCounter | None = None,
    ) -> Tensor:
        def traced(images: Tensor, rows: Tensor) -> Tensor:
            value = objective(images, rows)
            loss = value[0] if isinstance(value, tuple) else value  # without the flags that let samples leave
            self.trace.record(rows, loss)
            return loss

        return super().maximise(traced, images, sample_ids, threat, start=start, counter=counter)
