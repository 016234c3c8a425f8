"""Losses of a classifier's logits: what they are where float32 would know no difference.

Shapes: B samples, Y classes.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.class_losses import LogitScale, class_objective, cross_entropy, log_odds_of
from robustcli.utils.seeding import generator


def logits_of(scale: float, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (40,Y) whose labels are the highest ones for the first half."""
    logits = scale * torch.randn(40, classes, generator=generator(70))
    return logits, torch.where(torch.arange(40) < 20, logits.argmax(1), logits.argmin(1))


def test_cross_entropy_is_the_plain_one_bit_for_bit_where_it_is_not_saturated() -> None:
    logits, labels = logits_of(2.0)
    logits.requires_grad_(True)
    ours, plain = cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(ours, plain)
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (ours, plain)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e6])
def test_saturated_cross_entropy_keeps_the_order_and_the_direction_of_exact_arithmetic(scale: float) -> None:
    logits, labels = logits_of(scale)
    logits.requires_grad_(True)
    losses = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    exact = logits.detach().double()
    label_logit = exact.gather(1, labels[:, None]).squeeze(1)
    wrong = exact.scatter(1, labels[:, None], -torch.inf)
    log_odds = wrong.logsumexp(1) - label_logit
    assert torch.equal(losses.argsort(), log_odds.argsort())
    assert (log_odds < -8).sum() > 10
    direction = wrong.softmax(1) - F.one_hot(labels, 5)
    assert F.cosine_similarity(gradient.double(), direction, dim=1) == pytest.approx([1.0] * 40, abs=1e-5)


def test_log_odds_are_read_off_the_loss() -> None:
    log_odds = torch.tensor([-1000.0, -20.0, -8.0, -3.0, 0.0, 5.0, 300.0])
    losses = cross_entropy(torch.stack([torch.zeros(7), log_odds], 1), torch.zeros(7, dtype=torch.long))
    assert log_odds_of(losses) == pytest.approx(log_odds.tolist(), rel=1e-3)


def test_logits_of_a_usual_span_are_read_as_they_are_and_others_at_one_scale() -> None:
    logits, labels = logits_of(3.0)
    rows, usual = torch.arange(40), LogitScale(labels)
    assert torch.equal(usual(logits, rows), logits)
    assert torch.equal(usual(1e6 * logits, rows), 1e6 * logits)  # the first pass decides
    small, large = (LogitScale(labels)(logits * factor, rows) for factor in (1e-4, 1e4))
    assert torch.allclose(small, large, rtol=1e-5)
    assert small.amax(1) - small.amin(1) == pytest.approx([20.0] * 40, rel=1e-5)
    equal = torch.ones(40, 5)
    assert torch.equal(LogitScale(labels)(equal, rows), equal)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_an_objective_says_from_the_logits_as_they_are_who_is_fooled(loss: str) -> None:
    logits, labels = logits_of(1e4)
    objective = class_objective(loss, lambda images: logits, labels)
    assert torch.equal(objective(torch.zeros(40, 1, 1, 1), torch.arange(40))[1], logits.argmax(1) != labels)
