"""The optimisers by name, the schedule of the rate, and the moving average of the weights."""

from typing import Any

import pytest
import torch
from torch import nn

from robustcli.config.schemas import TrainerSettings
from robustcli.training.optimizers import blend, build_optimiser, scheduled_lr
from robustcli.utils.errors import UserError
from tests.training.test_trainer import SETTINGS


def stepped(name: str, weight_decay: float, gradients: list[float]) -> list[float]:
    """A matrix of one weight, 2.0, after each gradient, at a rate of 0.1; beside it a bias and a frozen weight."""
    weight, bias, frozen = (nn.Parameter(torch.full(shape, 2.0)) for shape in ((1, 1), (1,), (1, 1)))
    frozen.requires_grad_(False)
    optimiser = build_optimiser(name, [weight, bias, frozen], lr=0.1, weight_decay=weight_decay)
    seen = []
    for gradient in gradients:
        weight.grad, bias.grad = torch.full((1, 1), gradient), torch.zeros(1)
        optimiser.step()
        seen.append(weight.item())
    assert bias.item() == 2.0 and frozen.item() == 2.0, "neither decays"
    return seen


def test_sgd_has_a_momentum_of_nine_tenths() -> None:
    assert stepped("sgd", 0.0, [1.0, 1.0]) == pytest.approx([1.9, 1.71])
    assert stepped("sgd", 0.5, [0.0]) == pytest.approx([1.9])


def test_adamw_and_adamax_step_by_the_rate() -> None:
    assert stepped("adamw", 0.0, [3.0]) == pytest.approx([1.9])
    assert stepped("adamw", 0.5, [0.0]) == pytest.approx([1.9]), "decoupled from the gradient"
    assert stepped("adamax", 0.0, [3.0]) == pytest.approx([2 - 0.1 * 3 / 3.001], abs=1e-4)


def test_another_name_is_an_error() -> None:
    with pytest.raises(UserError, match=r"trainer\.optimizer is 'adamv': did you mean 'adam'\? \(choices: adamw, "):
        build_optimiser("adamv", [nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.0)


def rates(steps: int, **change: Any) -> list[float]:
    settings = TrainerSettings(**SETTINGS | change)
    return [scheduled_lr(settings, step, steps) for step in range(steps)]


def test_the_rate_rises_to_lr_and_falls_along_a_cosine() -> None:
    found = rates(100, lr=2.0, warmup=0.1, schedule="cosine")
    assert found[:3] == pytest.approx([0.2, 0.4, 0.6]), "a tenth of the steps, in equal parts, never 0"
    assert found[50] == pytest.approx(1.0) and 0 < found[99] < 0.001
    assert max(found) < 2.0 and found.index(max(found)) == 9
    assert rates(5, lr=2.0, warmup=0.4, schedule="constant") == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])
    assert rates(2, lr=2.0, warmup=0.0, schedule="constant") == [2.0, 2.0]


def test_an_average_moves_by_its_share_and_copies_counters() -> None:
    network = nn.BatchNorm1d(1)
    average = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.num_batches_tracked.fill_(7)
    blend(average, network, 0.75)
    assert average["weight"].item() == 1.5 and average["num_batches_tracked"].item() == 7
