"""Batch norms folded into the convolutions beside them, which is exact while they are in eval mode.

Shapes: O output channels, I input channels of a group, k kernel size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Convolution = tuple[Tensor, Tensor]  # weight (O,I,k,k) and bias (O,)


class Folded:
    """Convolutions of a sequence of layers with their batch norms folded in; cached until a weight changes.

    A norm right behind a convolution scales its output. One in front is folded only where the kernel is 1 x 1, since
    the padding of a larger one is not normalised.

    Args:
        layers: read when asked, so that they may be loaded, moved or trained in between; no submodule of anything.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = [layers]  # in a list, which a module does not take for a child
        self._kept: tuple[Any, list[Convolution]] | None = None

    @property
    def possible(self) -> bool:
        """True while the norms are at rest and no weight asks for a gradient."""
        layers = self._layers[0]
        return not layers.training and not any(weight.requires_grad for weight in layers.parameters())

    @property
    def convolutions(self) -> list[Convolution]:
        """Weight and bias of each convolution."""
        tensors = [*self._layers[0].parameters(), *self._layers[0].buffers()]
        state = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        if self._kept is None or self._kept[0] != state:
            with torch.no_grad():
                self._kept = state, list(_fold(self._layers[0]))
        return self._kept[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Folded":
        # The copied module's own layers stand in the memo: attributes are copied in the order in which they were set.
        return Folded(memo[id(self._layers[0])])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _fold(layers: nn.Sequential) -> Iterable[Convolution]:
    before: Convolution | None = None  # scale and shift that wait for the next convolution
    convolution: Convolution | None = None
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
            convolution, before = _behind(layer.weight, bias, before), None
        elif isinstance(layer, nn.BatchNorm2d):
            scale, shift = _affine(layer)
            if convolution is None:
                before = scale, shift
            else:
                weight, bias = convolution
                convolution = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
        elif convolution is not None:
            yield convolution
            convolution = None


def _behind(weight: Tensor, bias: Tensor, before: Convolution | None) -> Convolution:
    if before is None:
        return weight, bias
    scale, shift = before
    return weight * scale.view(1, -1, 1, 1), bias + (weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))


def _affine(norm: nn.BatchNorm2d) -> Convolution:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
