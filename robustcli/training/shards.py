"""Whose the state of the optimiser and the average of which weights are, among the processes of a training.

With ``ddp`` each process has those of all weights. With ``zero2`` each has those of a run of neighbouring weights, gets
the gradient of these alone, and sends them round after the update: stages 1 and 2 of ZeRO (Rajbhandari et al. 2020,
sections 5.1 and 5.2), SHARD_GRAD_OP of FSDP. The weights themselves are whole in every process, since the inner
attacks of a step run the network many times, and as often as each process sees fit.

Shapes: V entries of all weights together.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import nn

from robustcli.training.gradients import Gradients
from robustcli.training.group import Group
from robustcli.training.pairwise import PairwiseSum


class Shards:
    """The weights of a training by their owners.

    Args:
        weights: those that take a gradient, in an order that all processes share.
        group: of the processes.
        strategy: ``ddp`` or ``zero2``.

    Attributes:
        split: whether the weights have different owners.
        owned: the numbers of the weights of this process.
    """

    def __init__(self, weights: Sequence[nn.Parameter], group: Group, strategy: str) -> None:
        self.split = strategy == "zero2" and group.size > 1
        self._weights, self._group = weights, group
        sizes = [weight.numel() for weight in weights]
        self._runs = owners(sizes, group.size) if self.split else [range(len(weights))] * group.size
        self.owned = self._runs[group.rank]
        ends = [0, *accumulate(sizes)]
        self._ends = [ends[run.stop] for run in self._runs]

    def give(self, summed: Gradients, gradients: PairwiseSum, count: int) -> None:
        """Leave the sum over ``count`` micro-batches, of which ``gradients`` has those of this process, in the weights
        that it owns and in all buffers.
        """
        if not self.split:
            summed.give(self._group.total(gradients, count), count)
            return
        rest = PairwiseSum()  # changes of buffers, and which weights were reached: for all processes
        for first, size, value in gradients.nodes:
            rest.nodes.append((first, size, value[self._ends[-1] :].clone()))
        own = self._group.share(gradients, count, self._ends)
        summed.give(torch.cat([own, self._group.total(rest, count)]), count, self.owned)

    def clip(self, largest: float) -> None:
        """Scale the gradient so that its norm over all weights is ``largest`` at most."""
        if not self.split:
            nn.utils.clip_grad_norm_(self._weights, largest)
            return
        # Norms of the weights in their order, as one process has them: other sums have other bits.
        own = [self._weights[number] for number in self.owned]
        norms = torch.full((1, len(self._weights)), -1.0, dtype=torch.double)
        for number, weight in zip(self.owned, own, strict=True):
            if weight.grad is not None:
                norms[0, number] = torch.linalg.vector_norm(weight.grad)
        known = self._group.gathered(norms).amax(0).float()
        total = torch.linalg.vector_norm(known[known != -1])  # nan too, which reaches all weights then
        nn.utils.clip_grads_with_norm_(own, largest, total)

    @torch.no_grad()
    def spread(self) -> None:
        """Send the weights of each process to all others, which overwrite theirs."""
        if not self.split:
            return
        for owner, run in enumerate(self._runs):
            weights = [self._weights[number] for number in run]
            if not weights:
                continue
            flat = self._group.sent(torch.cat([weight.flatten() for weight in weights]), owner)
            parts = torch.split(flat, [weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.copy_(part.view_as(weight))


def owners(sizes: Sequence[int], count: int) -> list[range]:
    """Runs of neighbours, one for each of ``count`` processes, of about equal sums of ``sizes``; some may be empty."""
    total, middles = sum(sizes), [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    owner = [min(count - 1, int(middle * count / total)) if total else 0 for middle in middles]
    starts = [sum(each < number for each in owner) for number in range(count + 1)]
    return [range(first, last) for first, last in pairwise(starts)]
