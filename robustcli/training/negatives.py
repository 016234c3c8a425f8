"""A contrastive loss over all micro-batches of a step, whichever process computes them (GradCache, Gao et al. 2021).

The features of all micro-batches are computed without a graph and gathered; the loss gives the gradient by each of
them; then each micro-batch is encoded again, and its gradient goes on to the weights. So memory holds the graph of one
micro-batch at a time, and the gradient is that of one batch of all pairs: through the features as rows, and as the
negatives of others. Without the latter, half of it is lost.

Shapes: K micro-batches, R those of this process, B pairs of each, N = K B pairs, D embedding, W views of a pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.pairs import PairObjective, View
from robustcli.training.group import Group
from robustcli.training.pairwise import PairwiseSum


class Contrasting(Protocol):
    """A task whose loss contrasts views of pairs, such as `PairTask`."""

    objective: PairObjective
    data: Any

    def views(self, model: Any, batch: PairBatch, images: Tensor, *, seed: int) -> tuple[View, ...]:
        """The views of a micro-batch, after its inner attacks."""


@dataclass(frozen=True)
class _Micro:
    """What is kept of a micro-batch between its two passes."""

    number: int
    seed: int
    views: tuple[View, ...]
    loss: float = 0.0


class StepNegatives:
    """The loss of the pairs of a step, of which every other pair is a negative.

    Args:
        task: of which ``views`` and ``objective.contrast`` are read.
        model: the dual encoder that is trained.
        count: K, of a step.

    Raises:
        UserError: an objective whose loss is no contrastive one alone.
    """

    def __init__(self, task: Contrasting, model: Any, count: int) -> None:
        task.objective.check_negatives()
        self._task, self._model, self._count = task, model, count
        self._micros: dict[int, _Micro] = {}
        self._gradient = self._scale = torch.empty(0)

    @torch.no_grad()
    def begin(
        self,
        loaded: Sequence[tuple[PairBatch, Tensor]],
        seeds: Sequence[int],
        group: Group,
        *,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        """Attack the micro-batches of this process, and find the gradient of the step's loss by all features.

        Args:
            loaded: R micro-batches and their images (B,C,H,W) in [0,1].
            seeds: R, which name what each pass draws.
            group: processes that share the K micro-batches.
            restore: called after each first pass, which must leave the buffers of the model as they were.
        """
        run, features, ids = group.run(self._count), [], []
        self._micros.clear()
        for number, (batch, images), seed in zip(run, loaded, seeds, strict=True):
            torch.manual_seed(seed)
            views = self._task.views(self._model, batch, images.to(self._model.device), seed=seed)
            features.append(self._encoded(views, seed))
            ids.append(torch.stack([batch.image_ids, batch.caption_ids]))
            self._micros[number] = _Micro(number, seed, views)
            restore()
        gathered = group.gathered(torch.stack(features)).to(features[0])  # (K,W,2,B,D)
        pairs = group.gathered(torch.stack(ids)).transpose(0, 1).flatten(1)  # (2,N)
        total = PairwiseSum()
        for number in run:
            total.add(self._row_gradient(number, gathered, pairs), number)
        summed = group.total(total, self._count)
        self._scale, self._gradient = summed[-1], summed[:-1].view_as(gathered)

    def part(self, number: int) -> tuple[Tensor, float]:
        """A scalar whose gradient is the share of micro-batch ``number`` in that of the step's loss, and the mean loss
        of its rows.
        """
        micro = self._micros.pop(number)
        features = self._encoded(micro.views, micro.seed)
        # The temperature reaches all rows: every micro-batch takes an equal share of its gradient, so that a ceiling,
        # which heeds the sign, meets the sign of the whole.
        share = self._model.logit_scale * self._scale / self._count
        return (features * self._gradient[number]).sum() + share, micro.loss

    def _encoded(self, views: Sequence[View], seed: int) -> Tensor:
        """Features (W,2,B,D) of images and captions; both passes draw alike where the network draws by itself."""
        torch.manual_seed(seed)
        model = self._model
        both = [
            torch.stack([model.encode_image(view.images), model.encode_text(model.tokenize(view.captions))])
            for view in views
        ]
        return torch.stack(both)

    def _row_gradient(self, number: int, gathered: Tensor, pairs: Tensor) -> Tensor:
        """Gradient of the loss of the rows of a micro-batch by all features and, behind them, the inverse temperature,
        as a vector; B x N similarities are held at once.
        """
        micro, size = self._micros[number], gathered.shape[3]
        rows = slice(number * size, (number + 1) * size)
        images, captions = pairs
        relevance = self._task.data.relevance
        # (B,N): captions that are true of these images, and images of which these captions are true.
        of_images, of_captions = relevance(images[rows], captions), relevance(images, captions[rows]).T
        matches = of_images.to(gathered.device), of_captions.to(gathered.device)
        with torch.enable_grad(), torch.autocast(gathered.device.type, enabled=False):
            features = gathered.detach().requires_grad_(True)
            scale = self._model.logit_scale.detach().to(features).requires_grad_(True)
            loss = features.new_zeros(())
            for view, both in zip(micro.views, features.transpose(0, 1), strict=True):
                image_features, text_features = both.transpose(0, 1).flatten(1, 2)
                each = self._task.objective.contrast(image_features, text_features, scale, matches, rows=rows)
                loss = loss + view.weight * each.mean()
            gradients = torch.autograd.grad(loss / self._count, [features, scale])
        self._micros[number] = _Micro(number, micro.seed, micro.views, float(loss.detach()))
        return torch.cat([each.flatten() for each in gradients])
