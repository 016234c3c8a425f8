"""The discretised mixture of logistics, against sums over all levels and against its own draws."""

import math

import pytest
import torch
from torch import Tensor

from robustcli.models.generators import LogisticMixture
from robustcli.models.generators.mixture import parameter_count


def parameters(channels: int, mixtures: int, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1, parameter_count(channels, mixtures), 2, 2, generator=source, dtype=torch.float64)


def test_how_many_parameters_a_pixel_has() -> None:
    assert parameter_count(3, 10) == 100 and parameter_count(1, 4) == 12


@pytest.mark.parametrize("levels", [17, 256])
def test_the_levels_of_a_grey_pixel_have_all_the_mass(levels: int) -> None:
    mixture = LogisticMixture(parameters(1, 3, scale=2.0), channels=1, levels=levels)
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    if levels == 256:
        values = values[:-1]  # as in the published likelihood, the last level but one has all the mass above it too
    total = sum(mixture.log_prob(torch.full((1, 1, 2, 2), float(value), dtype=torch.float64)).exp() for value in values)
    torch.testing.assert_close(total, torch.ones(1, 2, 2, dtype=torch.float64), rtol=0, atol=1e-4)


def test_the_levels_of_a_colour_have_all_the_mass() -> None:
    levels = 5
    mixture = LogisticMixture(parameters(3, 2), channels=3, levels=levels)
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    total = torch.zeros(1, 2, 2, dtype=torch.float64)
    for colour in torch.cartesian_prod(values, values, values):
        total += mixture.log_prob(colour.view(1, 3, 1, 1).expand(1, 3, 2, 2)).exp()
    torch.testing.assert_close(total, torch.ones(1, 2, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_level_that_no_float_can_tell_from_none_still_has_a_gradient() -> None:
    given = parameters(1, 1).float()
    given[:, 1], given[:, 2] = 0.9, -7.0
    given.requires_grad_()
    log_prob = LogisticMixture(given, channels=1).log_prob(torch.zeros(1, 1, 2, 2))
    log_prob.sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None and bool(log_prob.isfinite().all()) and bool((given.grad[:, 1] != 0).all())


def test_draws_have_the_mean_that_is_told() -> None:
    given = parameters(3, 1, scale=0.2)
    given[:, 4:7] -= 3.0  # narrow: the clamp at the ends does not matter
    mixture = LogisticMixture(given.expand(20_000, -1, -1, -1), channels=3)
    source = torch.Generator().manual_seed(1)
    uniform = [torch.rand(20_000, count, 2, 2, generator=source, dtype=torch.float64) for count in (1, 3)]
    drawn = mixture.sample(*(value.clamp(1e-9, 1 - 1e-9) for value in uniform))
    torch.testing.assert_close(drawn.mean(0), mixture.mean()[0], rtol=0, atol=0.005)


def test_the_mean_of_several_is_that_of_their_shares() -> None:
    given = torch.zeros(1, parameter_count(1, 2), 1, 1)
    given[0, :2, 0, 0] = torch.tensor([0.0, math.log(3.0)])
    given[0, 2, 0, 0], given[0, 4, 0, 0] = -0.8, 0.4
    assert float(LogisticMixture(given, channels=1).mean()) == pytest.approx(0.25 * -0.8 + 0.75 * 0.4)
