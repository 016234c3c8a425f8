"""The shortest moves to a hyperplane inside the box, against a plain search for them.

Shapes: B batch, C channels, H height, W width.
"""

import pytest
import torch
from torch import Tensor

from robustcli.attacks.core.balls import ball
from robustcli.attacks.image.hyperplane import (
    Hyperplane,
    nearest_hyperplane,
    rival_classes,
)
from robustcli.utils.seeding import generator

SHAPE = (6, 3, 5, 4)


def draw(*parts: int | str) -> Tensor:
    return torch.randn(SHAPE, generator=generator(*parts))


def on_faces() -> Tensor:
    """(B,C,H,W) in [0,1], a third of the pixels at 0 or 1."""
    return (1.5 * torch.rand(SHAPE, generator=generator(40)) - 0.25).clamp(0, 1)


def change(move: Tensor, slope: Tensor) -> Tensor:
    return (move.double() * slope.double()).flatten(1).sum(1)


def bisected(images: Tensor, gap: Tensor, slope: Tensor, norm: str) -> Tensor:
    """(B,) float64, how small a move to the plane can be: `t` of `clamp(x - t way)`, found by halving."""
    steep = slope.double() / slope.abs().amax((1, 2, 3), keepdim=True)
    way = (steep if norm == "l2" else steep.sign()) * -gap.sign().view(-1, 1, 1, 1)
    low, high = torch.zeros(len(images)).double(), torch.full((len(images),), 1e4).double()
    for _ in range(100):
        middle = (low + high) / 2
        end = (images.double() + middle.view(-1, 1, 1, 1) * way).clamp(0, 1)
        through = change(end - images, slope).abs() >= gap.abs()
        low, high = torch.where(through, low, middle), torch.where(through, middle, high)
    return ball(norm, 0.0).distance((images.double() + high.view(-1, 1, 1, 1) * way).clamp(0, 1), images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_move_ends_on_the_plane_and_is_the_shortest_in_the_box(norm: str, sign: float) -> None:
    images, slope = on_faces(), draw(41)
    slope[:, 0, :2] = 0.0
    slope[2] *= 1e-30  # squares of which vanish in float32
    gap = sign * torch.tensor([0.01, 3.0, 2e-30, 0.5, 8.0, 1e-6])
    move = Hyperplane(gap, slope).projection_step(images, norm)
    assert ((images + move >= 0) & (images + move <= 1)).all()
    assert torch.allclose(change(move, slope), -gap.double(), rtol=1e-5, atol=0)
    length = ball(norm, 0.0).distance(move, torch.zeros_like(move))
    assert torch.allclose(length, bisected(images, gap, slope, norm), rtol=1e-4)
    assert move[slope == 0].abs().max() == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_out_of_reach_ends_in_the_corner_and_no_slope_goes_nowhere(norm: str) -> None:
    images, slope = on_faces(), draw(42)
    slope[0] = 0.0
    moved = images + Hyperplane(torch.full((6,), -1e6), slope).projection_step(images, norm)
    assert torch.equal(moved[0], images[0])
    assert torch.allclose(moved[1:], (slope[1:] > 0).float(), atol=1e-6)


def test_the_move_of_a_sample_does_not_depend_on_the_others() -> None:
    images, plane = on_faces(), Hyperplane(draw(43)[:, 0, 0, 0], draw(44))
    whole = plane.projection_step(images, "l2")
    alone = Hyperplane(plane.gap[3:4], plane.gradient[3:4]).projection_step(images[3:4], "l2")
    assert torch.allclose(whole[3:4], alone, atol=1e-7)


def test_a_plane_is_the_same_from_elsewhere() -> None:
    here, there, plane = on_faces(), on_faces().flip(0), Hyperplane(draw(45)[:, 0, 0, 0], draw(46))
    seen = plane.taken_at(there, here)
    assert torch.allclose(seen.gap.double(), plane.gap + change(there - here, plane.gradient), atol=1e-5)


@pytest.mark.parametrize(("norm", "nearest"), [("l2", 1), ("linf", 2)])
def test_the_nearest_plane_depends_on_the_norm(norm: str, nearest: int) -> None:
    """Class 1 has one steep pixel, class 2 many flat ones; class 3 has no slope, class 0 is the label."""
    logits, labels = torch.tensor([[4.0, 1.0, 1.0, 3.9]]), torch.zeros(1, dtype=torch.long)
    slopes = torch.zeros(4, 1, 1, 4, 4)
    slopes[1, 0, 0, 0, 0], slopes[2] = 10.0, 1.0
    rivals = rival_classes(logits, labels)
    least, gradients = torch.tensor([0.25]), lambda classes, _: (slopes[i] for i in classes[0])
    plane = nearest_hyperplane(logits, gradients, labels, rivals, norm, least)
    assert torch.equal(plane.gradient, slopes[nearest])
    assert plane.gap.item() == -3.5, "the least margin beyond the tie, twice"


def test_rivals_come_in_the_order_of_their_logits() -> None:
    logits, labels = torch.tensor([[3.0, 5.0, 4.0, 1.0], [9.0, 1.0, 2.0, 3.0]]), torch.tensor([1, 2])
    assert rival_classes(logits, labels).tolist() == [[2, 0, 3], [0, 3, 1]]
    assert rival_classes(logits, labels, 2).tolist() == [[2, 0], [0, 3]]
