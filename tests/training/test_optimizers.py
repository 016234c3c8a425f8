"""The optimisers by name: what they do with a gradient, with decay and with what is not learnt."""

import pytest
import torch
from torch import nn

from robustcli.training.optimizers import build_optimiser
from robustcli.utils.errors import UserError


def stepped(name: str, weight_decay: float, gradients: list[float]) -> list[float]:
    """A matrix of one weight, 2.0, after each gradient, at a rate of 0.1; beside it a bias and a frozen weight."""
    weight, bias, frozen = (nn.Parameter(torch.full(shape, 2.0)) for shape in ((1, 1), (1,), (1, 1)))
    frozen.requires_grad_(False)
    optimiser = build_optimiser(name, [weight, bias, frozen], lr=0.1, weight_decay=weight_decay)
    course = []
    for gradient in gradients:
        weight.grad, bias.grad = torch.full((1, 1), gradient), torch.zeros(1)
        optimiser.step()
        course.append(weight.item())
    assert bias.item() == 2.0 and frozen.item() == 2.0, "neither decays"
    return course


def test_sgd_has_a_momentum_of_nine_tenths() -> None:
    assert stepped("sgd", 0.0, [1.0, 1.0]) == pytest.approx([1.9, 1.71])
    assert stepped("sgd", 0.5, [0.0]) == pytest.approx([1.9])


def test_adamw_and_adamax_step_by_the_rate() -> None:
    assert stepped("adamw", 0.0, [3.0]) == pytest.approx([1.9])
    assert stepped("adamw", 0.5, [0.0]) == pytest.approx([1.9]), "decoupled from the gradient"
    assert stepped("adamax", 0.0, [3.0]) == pytest.approx([2 - 0.1 * 3 / 3.001], abs=1e-4)


def test_another_name_is_an_error() -> None:
    with pytest.raises(UserError, match=r"trainer\.optimizer is 'lion': choose adamw, sgd, adamax"):
        build_optimiser("lion", [nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.0)
