"""A generator and a classifier that are small enough for a test."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustcli.data import Digits
from robustcli.models import Classifier, load, small_cnn
from robustcli.models.generators import NVAE

SIZES = {
    "num_scales": 2,
    "num_groups_per_scale": 2,
    "is_adaptive": False,
    "min_groups_per_scale": 1,
    "num_cells_per_group": 1,
    "num_latent_per_group": 3,
    "num_nf_cells": None,
    "initial_channels": 4,
    "num_pre-post_process_blocks": 1,
    "num_pre-post_process_cells": 1,
    "num_logistic_mixtures": 2,
}


@pytest.fixture
def generator() -> NVAE:
    """Four latents, images of 1 x 8 x 8."""
    return NVAE({"resolution": [1, 8, 8], "levels": 17, "autoencoder": SIZES})


@pytest.fixture
def classifier() -> Classifier:
    """Ten classes of grey images, with random weights."""
    return small_cnn(classes=[str(digit) for digit in range(10)], channels=1, widths=[4, 4, 4], seed=0)


@pytest.fixture
def shipped_digits() -> Callable[[], tuple[Classifier, Tensor, Tensor]]:
    """A function that gives the shipped classifier of digits, and 64 test images with their labels."""

    def made() -> tuple[Classifier, Tensor, Tensor]:
        network, data = load("digits"), Digits(split="test")
        assert isinstance(network, Classifier)
        return network, data.images(torch.arange(64)), data.labels[:64]

    return made
