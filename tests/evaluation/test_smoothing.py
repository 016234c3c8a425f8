"""Randomised smoothing against what is known in closed form."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from robustcli.evaluation.smoothing import ABSTAINED, Smoothing, certified_accuracy, lower_bound
from robustcli.utils.errors import UserError


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    assert lower_bound(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000))
    bound = lower_bound(80, 100, 0.05)
    tail = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(80, 101))
    assert tail == pytest.approx(0.05, rel=1e-6) and lower_bound(0, 10, 0.01) == 0


def linear(threshold: float) -> Callable[[Tensor], Tensor]:
    """Two classes by the mean of the pixels: the distance to the other class is known."""

    def model(images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([threshold - mean, mean - threshold], 1)

    return model


def test_the_radius_of_a_linear_classifier_is_below_its_distance_and_near_it() -> None:
    images = torch.tensor([0.5, 0.52, 0.56]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    distance = (images[:, 0, 0, 0] - 0.5) * 8  # of the mean, times the square root of 64 pixels
    smoothing = Smoothing(sigma=0.1, samples=4000)
    table = smoothing.certify(linear(0.5), images, torch.ones(3, dtype=torch.long), [0, 1, 2], seed=0)
    assert table["predicted"].tolist() == [ABSTAINED, 1, 1] and table["correct"].tolist() == [False, True, True]
    assert table["radius"][0] == 0 and 0.75 * distance[1] < table["radius"][1] < distance[1]
    most = 0.1 * NormalDist().inv_cdf(0.001 ** (1 / 4000))
    assert table["radius"][2] == pytest.approx(most) and most < distance[2], "no sample proves more than so much"
    assert certified_accuracy(table, 0.0) == pytest.approx(2 / 3) and certified_accuracy(table, 0.2) == pytest.approx(
        1 / 3
    )


def test_an_image_has_the_same_certificate_in_any_batch() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, smoothing = torch.zeros(3, dtype=torch.long), Smoothing(sigma=0.2, selection=10, samples=50, batch_size=16)
    state = torch.get_rng_state()
    whole = smoothing.certify(linear(0.5), images, labels, [4, 5, 6], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    alone = smoothing.certify(linear(0.5), images[1:2], labels[:1], [5], seed=1)
    assert alone.iloc[0].to_dict() == whole.iloc[1].to_dict()


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"certify\.sigma is 0"):
        Smoothing(sigma=0)
    with pytest.raises(UserError, match=r"certify\.alpha is 1"):
        Smoothing(sigma=1, alpha=1)
