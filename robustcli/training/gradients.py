"""What a micro-batch leaves in a network, as one vector: gradients, and the changes of buffers such as the moments of
batch norms.

The vectors of the micro-batches of a step are added, by whoever holds them, and their sum is put back.

Shapes: V entries of all weights and buffers together, and of a flag for each weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Gradients:
    """Gradients and changed buffers of the micro-batches of a step.

    Each micro-batch begins with the buffers that the step began with, those of now, as it does where another process
    computes it; the step then moves them by the mean of the changes, and counters by their sum.

    Args:
        weights: those that require a gradient get one.
        buffers: of the network.
    """

    def __init__(self, weights: Sequence[nn.Parameter], buffers: Sequence[Tensor]) -> None:
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._buffers = [buffer for buffer in buffers if buffer.dtype != torch.bool]
        self._begun = [buffer.detach().clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put back the buffers that the step began with."""
        for kept, buffer in zip(self._begun, self._buffers, strict=True):
            if not torch.equal(kept, buffer):
                buffer.copy_(kept)

    @torch.no_grad()
    def take(self) -> Tensor:
        """What the backward pass of a micro-batch left, (V,); gradients and buffers are as before it then.

        A weight without a gradient, of which an update leaves even the decay alone, is told from one with zeros.
        """
        reached = [float(weight.grad is not None) for weight in self._weights]
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._weights]
        # Equal values first: the difference of two infinities, as in the mask of a causal tower, is no change.
        parts += [
            torch.where(buffer == kept, torch.zeros_like(kept), buffer - kept)
            for kept, buffer in zip(self._begun, self._buffers, strict=True)
        ]
        flags = torch.tensor(reached, device=parts[0].device)
        taken = torch.cat([part.flatten() for part in [*parts, flags]])
        for weight in self._weights:
            weight.grad = None
        self.restore()
        return taken

    @torch.no_grad()
    def give(self, total: Tensor, count: int, run: range | None = None) -> None:
        """Put the sum over the ``count`` micro-batches of a step back, as gradients of the weights and buffers.

        Args:
            total: (V,); where ``run`` has the numbers of some neighbouring weights, of the others only the flags.
        """
        run = range(len(self._weights)) if run is None else run
        weights = self._weights[run.start : run.stop]
        sizes = [each.numel() for each in (*weights, *self._buffers)]
        *parts, flags = torch.split(total, [*sizes, len(self._weights)])
        reached = flags[run.start : run.stop].tolist()
        for weight, part, touched in zip(weights, parts, reached, strict=False):
            weight.grad = part.view_as(weight).to(weight.dtype) if touched else None
        for buffer, part in zip(self._buffers, parts[len(weights) :], strict=True):
            change = part.view_as(buffer)
            buffer.add_((change / count if buffer.is_floating_point() else change).to(buffer.dtype))
