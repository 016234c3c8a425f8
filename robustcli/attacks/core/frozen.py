"""Freezing of a model during an attack: flags, gradients, buffers and global generators are restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(*models: object) -> Iterator[None]:
    """Context of eval mode without gradients to weights; afterwards everything is as before.

    Restored are the train flag of every submodule, ``requires_grad`` and ``.grad`` (the same objects) of every
    parameter, the values of all buffers and the states of torch's global generators. Autocast and the default dtype
    are not touched at all.

    Raises:
        RuntimeError: within ``torch.inference_mode``, where all gradients would be zeros and every model robust.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an attack needs gradients: call it outside of torch.inference_mode(); no_grad does no harm")
    modules = [model for model in models if isinstance(model, nn.Module)]
    flags = [(part, part.training) for model in modules for part in model.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for model in modules for weight in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for model in modules for buffer in model.buffers()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            for model in modules:
                model.eval().requires_grad_(False)
            yield
        finally:
            for part, training in flags:
                part.training = training
            for weight, wanted, gradient in weights:
                weight.requires_grad_(wanted)
                weight.grad = gradient
            _restore(buffers)


def _restore(buffers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy back the buffers that changed, and no others: a needless copy would invalidate graphs of the caller."""
    with torch.no_grad():
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)
