"""What a micro-batch leaves in a network, taken out as a vector and put back as a sum."""

import torch
from torch import nn

from robustcli.training.gradients import Gradients
from robustcli.training.pairwise import PairwiseSum


def network() -> nn.Sequential:
    """A batch norm that moves, a mask of infinities, and a layer that no loss below reaches."""
    made = nn.Sequential(nn.BatchNorm1d(2, momentum=0.5), nn.Linear(2, 1), nn.Linear(2, 1))
    made.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    for weight in made.parameters():
        nn.init.constant_(weight, 0.5)
    return made.train()


BATCHES = [torch.tensor([[0.0, 2.0], [2.0, 4.0], [4.0, 0.0]]), torch.tensor([[8.0, 0.0], [0.0, 6.0], [4.0, 0.0]])]


def test_gradients_add_up_and_moments_move_by_the_mean_of_the_changes() -> None:
    whole = network()
    gradients, total = Gradients(list(whole.parameters()), list(whole.buffers())), PairwiseSum()
    alone = []
    for number, batch in enumerate(BATCHES):
        (whole[1](whole[0](batch)) ** 2).sum().backward()
        total.add(gradients.take(), number)
        assert all(weight.grad is None for weight in whole.parameters())
        assert whole[0].running_mean.tolist() == [0.0, 0.0], "each begins where the step began"
        other = network()
        (other[1](other[0](batch)) ** 2).sum().backward()
        alone.append(other)
    gradients.give(total.total(), len(BATCHES))
    for weight, first, second in zip(whole.parameters(), *(each.parameters() for each in alone), strict=True):
        if first.grad is None:
            assert weight.grad is None, "the decay of an optimiser would move it"
        else:
            torch.testing.assert_close(weight.grad, first.grad + second.grad, rtol=0, atol=0)
    for name in ("running_mean", "running_var"):
        mean = sum(getattr(each[0], name) for each in alone) / 2
        torch.testing.assert_close(getattr(whole[0], name), mean)
    assert int(whole[0].num_batches_tracked) == 2
    assert whole.mask.tolist() == [0.0, -torch.inf]


def test_a_weight_that_one_batch_reaches_has_its_gradient() -> None:
    whole = network()
    gradients, total = Gradients(list(whole.parameters()), []), PairwiseSum()
    whole[2](BATCHES[0]).sum().backward()
    total.add(gradients.take(), 0)
    whole[1](BATCHES[0]).sum().backward()
    total.add(gradients.take(), 1)
    gradients.give(total.total(), 2)
    assert whole[2].weight.grad.tolist() == whole[1].weight.grad.tolist() == BATCHES[0].sum(0, keepdim=True).tolist()
    assert whole[0].weight.grad is None
