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


def test_a_peek_answers_like_a_pass_and_notes_nothing() -> None:
    images, rows = torch.rand(3, *PIXELS, generator=generator(1)), torch.tensor([2, 0, 2])
    oracle = ImageOracle(lambda x, _: (x.flatten(1).sum(1), x.flatten(1).sum(1) > 0), QueryCounter.of(3))
    loss, fooled = oracle.peek(images, rows)
    assert torch.equal(loss, images.flatten(1).sum(1)) and fooled.all()
    assert not oracle.fooled.any() and not oracle.counter.queries.any()
    assert not ImageOracle(lambda x, _: x.flatten(1).sum(1), QueryCounter.of(3)).peek(images, rows)[1].any()


def test_members_are_credited_through_parts_and_the_last_one_stays() -> None:
    oracle = LogitOracle(LinearClassifier(torch.ones(PIXELS), 0.5), QueryCounter.of(4))
    oracle.credit("first", torch.tensor([1, 3]))
    with oracle.part(torch.tensor([3, 2])) as part:
        part.credit("second", torch.tensor([1]))
    assert oracle.members == ["", "first", "second", "first"]
