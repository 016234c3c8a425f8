"""Square Attack: its schedule, its windows, its queries, and that it reads no gradient.

Shapes: N images, C channels, H height, W width.
"""

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import SepAttack
from robustcli.attacks.image.square import Square, bump_pair, p_selection
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import SmallNet, ToyDual, make_pairs


def _inputs(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    net, images = SmallNet().eval(), torch.rand(n, 3, 8, 8, generator=generator(20))
    return net, images, net(images).argmax(1)


def test_the_windows_shrink_at_the_points_of_the_paper() -> None:
    at = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999]
    halvings = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert [p_selection(0.8, query, 10_000) for query in at] == [0.8 / 2**times for times in halvings]
    assert p_selection(0.8, 26, 5000) == 0.8 / 4  # rescaled: as far as query 52 of 10,000


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_a_pair_of_bumps_has_length_one_and_two_signs(side: int) -> None:
    pair = bump_pair(side)
    assert pair.shape == (side, side)
    assert pair.norm() == pytest.approx(1.0)
    assert (pair[: side // 2] > 0).all()
    assert (pair[side // 2 :] < 0).all()
    # Of a bump of 2 x 5 the middle is 1 + 1/4 + 1/9, and each ring around it lacks the first term of the one within.
    if side == 5:
        assert (pair[1] / pair[1, 2] * (1 + 1 / 4 + 1 / 9)).tolist() == pytest.approx(
            [1 / 9, 1 / 4 + 1 / 9, 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9]
        )


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2)])
def test_the_whole_budget_is_used_and_only_standing_samples_are_queried(norm: str, eps: float) -> None:
    net, images, labels = _inputs(40)
    result = Square(norm=norm, eps=eps, queries=60)(net, images, labels)
    assert (result.gradients == 0).all()
    assert (result.queries[~result.success] == 60).all()
    assert (result.queries[result.success] < 60).any()
    assert result.success.any()
    assert not result.success.all()
    assert (result.norm > 0.8 * eps).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.2)])
def test_what_lowers_the_loss_is_forgotten(norm: str, eps: float) -> None:
    """The loss of what is kept is the highest of all that was asked."""
    net, images, labels = _inputs(128)  # too many for a pass to hold two proposals of each
    highest = torch.full((128,), -torch.inf)
    first: list[Tensor] = []

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(net(x), labels[rows], reduction="none").detach()
        first.append(loss)
        highest.scatter_reduce_(0, rows, loss, "amax")
        return loss

    found = Square(norm=norm, eps=eps, queries=40).maximise(objective, images, torch.arange(128))
    tried = highest.clone()
    kept = objective(found, torch.arange(128))
    assert (kept - tried).abs().max() < 1e-5
    assert (kept > first[0]).all()


def test_proposals_differ_between_samples() -> None:
    twice = torch.full((2, 3, 8, 8), 0.5)
    heights = iter(range(100))

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        return torch.full((len(x),), float(next(heights)))

    found = Square(eps=0.1, queries=4).maximise(objective, twice, torch.tensor([7, 8]))
    assert not torch.equal(found[0], found[1])
    assert ((found - 0.5).abs() - 0.1).abs().max() < 1e-6  # every pixel on the rim of the ball


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_windows_differ_between_samples_of_the_same_start(norm: str) -> None:
    twice, asked = torch.full((2, 3, 8, 8), 0.5), list[Tensor]()

    def objective(x: Tensor, rows: Tensor) -> Tensor:
        asked.append(x.clone())
        return torch.zeros(len(x))

    Square(norm=norm, eps=0.1, queries=2).maximise(objective, twice, torch.tensor([7, 8]), start=twice)
    start, proposals = asked
    assert torch.equal(start[0], start[1]) and not torch.equal(proposals[0], proposals[1])
    # In L2 a window takes what nothing else has used of the budget: of the clean image all of it.
    norms = Square(norm=norm, eps=0.1).threat.ball.distance(proposals, twice)
    assert norms.tolist() == pytest.approx([0.1, 0.1], rel=1e-4)


def test_a_dual_encoder_is_attacked_as_a_black_box(model: ToyDual) -> None:
    found = SepAttack(image=Square(eps=0.05, queries=80))(model, make_pairs(model))
    assert (found.gradients == 0).all()
    assert (found.queries == 80).all()
    assert found.image_success.float().mean() > 0.5


def test_black_and_white_pixels_cost_no_budget() -> None:
    """The box cuts off half of a move of theirs, which the others take over."""
    net, images = SmallNet().eval(), (torch.rand(12, 3, 8, 8, generator=generator(43)) > 0.5).float()
    found = Square(norm="l2", eps=2, queries=40, early_stop=False)(net, images, net(images).argmax(1))
    assert (found.norm > 0.99 * 2).all()


def test_hyper_parameters_are_checked() -> None:
    bad: list[dict[str, object]] = [{"queries": 0}, {"p_init": 0}, {"p_init": 1.5}, {"loss": "infonce"}]
    for changed in bad:
        with pytest.raises(UserError, match=rf"attack\.{next(iter(changed))}(=| is)"):
            Square(**changed)  # type: ignore[arg-type]
