"""What turns gradients into steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from robustcli.utils.errors import UserError

_KINDS: Mapping[str, tuple[Callable[..., torch.optim.Optimizer], Mapping[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.98)}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adamax": (torch.optim.Adamax, {"betas": (0.9, 0.999), "eps": 1e-3}),  # eps of NVAE (Vahdat and Kautz 2020)
}


def build_optimiser(
    name: str, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of ``trainer.optimizer``; weights without a gradient are left out.

    Args:
        name: ``adamw``, ``sgd`` with momentum 0.9, or ``adamax``. The decay of ``adamw`` is decoupled from the gradient
            (Loshchilov and Hutter 2019), that of the others is added to it.
        weight_decay: of matrices and kernels; norms, biases and a temperature have none.

    Raises:
        UserError: another name.
    """
    if name not in _KINDS:
        raise UserError(f"trainer.optimizer is {name!r}: choose {', '.join(_KINDS)}.")
    kind, settings = _KINDS[name]
    learnt = [weight for weight in weights if weight.requires_grad]
    decayed = [weight for weight in learnt if weight.ndim > 1]
    plain = [weight for weight in learnt if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return kind(groups, lr=lr, **settings)
