"""What an attack is seen to do from outside: the gradients that reach it, and the loss that it climbs.

Shapes: B images asked for, N images, C channels, H height, W width, K passes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.averaging import EncoderWrapper
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageObjective, ImageOracle, Meter
from robustcli.attacks.core.pairs import DualEncoderLike


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


class Traced(ImageAttack):
    """An attack whose climb is written down; no sample leaves it early.

    Args:
        attack: the search.
        climb: is told the losses.
    """

    def __init__(self, attack: ImageAttack, climb: Climb) -> None:
        super().__init__(norm=attack.norm, eps=attack.eps, loss=attack.loss, early_stop=False, seed=attack.seed)
        self.attack, self.climb = attack, climb

    def find(self, oracle: ImageOracle, images: Tensor, sample_ids: Sequence[int], start: Tensor | None) -> Tensor:
        return self.attack.find(oracle, images, sample_ids, start)

    def maximise(
        self,
        objective: ImageObjective,
        images: Tensor,
        sample_ids: Tensor,
        *,
        start: Tensor | None = None,
        meter: Meter | None = None,
    ) -> Tensor:
        def traced(asked: Tensor, rows: Tensor) -> Tensor:
            evaluated = objective(asked, rows)
            loss = evaluated[0] if isinstance(evaluated, tuple) else evaluated
            self.climb.see(rows, loss)
            return loss

        return super().maximise(traced, images, sample_ids, start=start, meter=meter)
