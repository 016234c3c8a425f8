"""Activation checkpointing (Chen et al. 2016): the inputs of the blocks of a transformer are kept, and what is computed
within them is computed again for the gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robustcli.utils.errors import UserError

_BLOCKS = ("blocks", "resblocks", "layers")  # of our towers and timm's, of open_clip, of transformers


def check_blocks(network: nn.Module) -> None:
    """Refuse a network that `checkpointed` would not change.

    Raises:
        UserError: it has no blocks of a transformer, or a batch norm within, whose moments would be counted twice.
    """
    found = _blocks(network)
    if not found or any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for block in found for part in block.modules()
    ):
        raise UserError(
            "trainer.checkpointing=true computes the blocks of a transformer again, of which the model has none: leave "
            "it out, or lower trainer.batch_size and raise trainer.accumulation."
        )


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Context in which every block of the transformers in ``network`` is computed again where a gradient needs it."""
    found = _blocks(network)
    for block in found:
        block.forward = _again(block.forward)
    try:
        yield
    finally:
        for block in found:
            del block.forward


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **settings)
        return checkpoint(forward, *arguments, use_reentrant=False, **settings)

    return call


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [
        block
        for module in network.modules()
        for name, children in module.named_children()
        if name in _BLOCKS and isinstance(children, nn.ModuleList | nn.Sequential)
        for block in children
    ]
