"""What an attack is seen to do from outside: the gradients that reach it, and the loss that it climbs.

Shapes: B images asked for, N images, C channels, H height, W width, K passes.
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


class Slopes:
    """Sizes of all gradients by the images that a model was asked for.

    Args:
        norm: of the budget. A gradient is measured in the dual one: times eps it is how much the loss may rise within
            the ball, to first order.
    """

    def __init__(self, norm: str) -> None:
        self._order = 1.0 if norm == "linf" else 2.0
        self._sizes: list[Tensor] = []

    def watch(self, images: Tensor) -> Tensor:
        """The same images, whose gradient will be measured."""
        if not images.requires_grad or not torch.is_grad_enabled():
            return images
        seen = images.view_as(images)
        seen.register_hook(self._measure)  # type: ignore[no-untyped-call]
        return seen

    def sizes(self) -> Tensor:
        """(K,) float64 on the CPU, of each gradient of an image."""
        return torch.cat(self._sizes) if self._sizes else torch.zeros(0, dtype=torch.float64)

    def _measure(self, gradient: Tensor) -> None:
        flat = gradient.detach().double().flatten(1)  # squares of tiny gradients would underflow
        self._sizes.append(torch.linalg.vector_norm(flat, ord=self._order, dim=1).cpu())


class WatchedClassifier(nn.Module):
    """The model itself, with its gradients measured."""

    def __init__(self, model: Callable[[Tensor], Tensor], slopes: Slopes) -> None:
        super().__init__()
        self.model, self.slopes = model, slopes

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        return self.model(self.slopes.watch(images))


class WatchedEncoder(EncoderWrapper):
    """The dual encoder itself, with the gradients of its images measured."""

    def __init__(self, model: DualEncoderLike, slopes: Slopes) -> None:
        super().__init__(model)
        self.slopes = slopes

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(self.slopes.watch(images))


class Climb:
    """The loss of each of N images at each pass over it."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, rows: Tensor, loss: Tensor) -> None:
        """Losses (B,) of the images ``rows`` (B,)."""
        self._seen.append((rows.cpu(), loss.detach().double().cpu()))

    def best(self) -> Tensor:
        """(K,N) the highest loss so far of each image, pass by pass."""
        count = 1 + max((int(seen.max()) for seen, _ in self._seen if len(seen)), default=-1)
        table = torch.full((len(self._seen), count), -torch.inf, dtype=torch.float64)
        for step, (seen, loss) in enumerate(self._seen):
            table[step, seen] = torch.where(loss.isnan(), -torch.inf, loss)
        best: Tensor = table.cummax(0).values
        return best


@dataclass(frozen=True, kw_only=True)
class Traced(ImageAttack):
    """An attack whose climb is written down; no sample leaves it early.

    Args:
        attack: the search.
        climb: is told the losses.
    """

    attack: ImageAttack = field(kw_only=False)
    climb: Climb = field(kw_only=False)
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
        def traced(asked: Tensor, rows: Tensor) -> Tensor:
            evaluated = objective(asked, rows)
            loss = evaluated[0] if isinstance(evaluated, tuple) else evaluated
            self.climb.see(rows, loss)
            return loss

        return super().maximise(traced, images, sample_ids, threat, start=start, counter=counter)
