"""Optimisers by name, the schedule of the learning rate, and the moving average of the weights."""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.config.schemas import TrainerSettings
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_KINDS: Mapping[str, tuple[Callable[..., torch.optim.Optimizer], Mapping[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.98)}),
    "adam": (torch.optim.Adam, {"betas": (0.0, 0.99)}),  # without momentum, for a critic and its generator in turn
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adamax": (torch.optim.Adamax, {"betas": (0.9, 0.999), "eps": 1e-3}),  # eps of NVAE (Vahdat and Kautz 2020)
}


def build_optimiser(
    name: str, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, Adam, SGD or Adamax over the weights that take a gradient.

    Args:
        name: ``adamw``, ``adam`` without momentum, ``sgd`` with momentum 0.9, or ``adamax``. The decay of ``adamw``
            is decoupled from the gradient
            (Loshchilov and Hutter 2019), that of the others is added to it.
        lr: learning rate of the first update, until `scheduled_lr` sets it.
        weight_decay: of matrices and kernels; norms, biases and a temperature have none.

    Raises:
        UserError: another name.
    """
    if name not in _KINDS:
        near = did_you_mean(name, list(_KINDS))
        raise UserError(f"trainer.optimizer is {name!r}{near} (choices: {', '.join(_KINDS)}).")
    kind, settings = _KINDS[name]
    learnt = [weight for weight in weights if weight.requires_grad]
    decayed = [weight for weight in learnt if weight.ndim > 1]
    plain = [weight for weight in learnt if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return kind(groups, lr=lr, **settings)


def scheduled_lr(settings: TrainerSettings, step: int, steps: int) -> float:
    """Learning rate of update ``step`` (from 0) of ``steps``: a linear rise over the share ``warmup``, under a cosine
    from 1 to 0 (Loshchilov and Hutter 2017) or a constant, whichever is lower.
    """
    warm = settings.warmup * steps
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / steps)) if settings.schedule == "cosine" else 1.0
    return settings.lr * min(rise, fall)


def moments(optimiser: torch.optim.Optimizer, numbers: Mapping[Tensor, int]) -> dict[int, dict[str, Any]]:
    """What ``optimiser`` keeps of each weight that it has moved, by the number of the weight."""
    return {numbers[weight]: dict(kept) for weight, kept in optimiser.state.items() if kept}


def restore_moments(
    optimiser: torch.optim.Optimizer, numbers: Mapping[Tensor, int], kept: Mapping[int, Mapping[str, Any]]
) -> None:
    """Put back what `moments` gave; of weights that ``optimiser`` does not have nothing is taken."""
    content = optimiser.state_dict()
    listed = [weight for group in optimiser.param_groups for weight in group["params"]]
    state = {place: kept[numbers[weight]] for place, weight in enumerate(listed) if numbers[weight] in kept}
    optimiser.load_state_dict({"state": state, "param_groups": content["param_groups"]})


def started_average(network: nn.Module, without: Set[nn.Parameter] = frozenset()) -> dict[str, Tensor]:
    """Copies of the weights and buffers of a network by their names, for `blend`; of a shared one under its first name.

    Args:
        without: weights that are left out.
    """
    first = dict(network.named_parameters())
    everywhere = network.named_parameters(remove_duplicate=False)
    left = {name for name, weight in everywhere if name not in first or weight in without}
    return {key: each.detach().clone() for key, each in network.state_dict().items() if key not in left}


@torch.no_grad()
def blend(average: Mapping[str, Tensor], network: nn.Module, decay: float) -> None:
    """Exponential moving average, in place: a step of 1 - ``decay`` towards the weights that ``average`` has; counters
    are copied.
    """
    now = network.state_dict()
    for key, value in average.items():
        if value.is_floating_point():
            value.lerp_(now[key], 1 - decay)
        else:
            value.copy_(now[key])


@torch.no_grad()
def swap(average: Mapping[str, Tensor], network: nn.Module) -> None:
    """Exchange the values of ``average`` with those of the network."""
    now = network.state_dict()
    for key, value in average.items():
        kept = value.clone()
        value.copy_(now[key])
        now[key].copy_(kept)
