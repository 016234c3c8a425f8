"""Oracles: gradients of each sample's own loss, whatever its batch.

Shapes: B images, C channels, H height, W width.
"""

import pytest
import torch

from robustcli.attacks import ImageOracle, LogitOracle
from robustcli.attacks.core.counter import QueryCounter
from robustcli.utils.seeding import generator

from ..conftest import PIXELS, LinearClassifier


@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_is_that_of_the_loss_of_each_sample_in_any_batch(count: int) -> None:
    weight, rows = torch.randn(*PIXELS, generator=generator(0)), torch.arange(count)
    images, expected = torch.rand(count, *PIXELS, generator=generator(1)), weight.expand(count, -1, -1, -1)
    of_loss = ImageOracle(lambda x, _: (x * weight).flatten(1).sum(1), QueryCounter.of(count))
    of_logits = LogitOracle(LinearClassifier(weight, 0.5), QueryCounter.of(count))
    _, differences = of_logits.logit_gradients(images, rows)
    gradients = (
        of_loss.gradient(images, rows)[1],
        of_logits.gradient(images, rows, lambda logits, _: logits[:, 1])[2],
        next(differences(torch.ones(count, 1, dtype=torch.long), torch.zeros(count, dtype=torch.long))),
    )
    assert all(torch.equal(gradient, expected) for gradient in gradients)
