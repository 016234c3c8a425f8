"""Balls and boxes: what they accept, project, draw and refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.attacks import L2, Linf, parse_eps
from robustcli.attacks.core.balls import ball as ball_of
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@pytest.mark.parametrize(("value", "eps"), [("4/255", 4 / 255), (0.1, 0.1), ("0.1", 0.1), (0, 0.0), (1, 1.0)])
def test_eps_is_read_as_a_number_or_a_fraction(value: object, eps: float) -> None:
    assert parse_eps(value) == pytest.approx(eps, abs=1e-15)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "says"),
    [(4, "did you mean 4/255"), ("8", "did you mean 8/255"), (-0.1, "not negative"), ("four", "expected a number"),
     ("4/0", "expected a number"), (float("nan"), "finite"), (1000, "at most 1"), (None, "expected a number")],
)  # fmt: skip
def test_an_impossible_eps_says_what_was_meant(value: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_eps(value)  # type: ignore[arg-type]
    if value is not None:  # a ball without a radius
        with pytest.raises(UserError, match=says):
            Linf(value)  # type: ignore[arg-type]


def test_an_l2_radius_may_be_above_one() -> None:
    assert L2(3).eps == 3.0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Linf, L2]), st.floats(0, 1), st.floats(0, 3), st.integers(0, 1000))
def test_what_is_settled_keeps_ball_and_box_exactly(ball: type, eps: float, reach: float, seed: int) -> None:
    draw = generator(seed, "ball")
    clean = torch.rand(3, 3, 5, 4, generator=draw)
    moved = clean + reach * torch.randn(clean.shape, generator=draw)
    settled = ball(eps).settle(moved, clean)
    assert ball(eps).audit(settled, clean).max() <= eps
    start = ball(eps).random_start(clean, [0, 1, 2], 7)
    assert ball(eps).distance(start, clean).max() <= eps + 1e-6  # the loop's points are right up to rounding


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)])
def test_settling_moves_nothing_that_is_allowed(ball: Linf | L2) -> None:
    clean = torch.rand(2, 3, 4, 4, generator=generator(0))
    inside = (clean + 1e-3).clamp(0, 1)
    assert torch.equal(ball.settle(inside, clean), inside)


def test_the_audit_refuses_what_is_out_of_ball_or_box_or_no_number() -> None:
    clean = torch.full((1, 3, 2, 2), 0.5)
    for bad in (clean + 0.2, clean + 0.6, clean * torch.nan, clean[:, :2], clean.double()):
        with pytest.raises(RuntimeError):
            Linf(0.1).audit(bad, clean)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_ball_without_a_radius_is_bounded_by_the_box_alone(norm: str) -> None:
    clean = torch.rand(2, 3, 4, 4, generator=generator(0))
    everywhere = ball_of(norm, None)
    assert everywhere.eps == torch.inf
    far = everywhere.settle(3 * clean - 1, clean)
    assert torch.equal(far, (3 * clean - 1).clamp(0, 1))
    assert torch.equal(everywhere.audit(far, clean), everywhere.distance(far, clean))
    with pytest.raises(RuntimeError, match="left"):
        everywhere.audit(clean + 1, clean)


def test_another_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"threat\.norm is 'l1': choose linf or l2"):
        ball_of("l1", 0.1)


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)])
def test_the_start_of_a_sample_depends_on_its_id_alone(ball: Linf | L2) -> None:
    clean = torch.rand(1, 3, 4, 4, generator=generator(0)).expand(3, -1, -1, -1)
    starts = ball.random_start(clean, [5, 6, 7], "x")
    assert torch.equal(ball.random_start(clean[:2], [7, 5], "x"), starts[[2, 0]])
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(ball.random_start(clean, [5, 6, 7], "y"), starts)


def test_an_l2_start_fills_the_ball_and_a_step_has_its_length() -> None:
    clean = torch.full((200, 1, 2, 1), 0.5)
    radii = L2(0.2).distance(L2(0.2).random_start(clean, range(200), 0), clean)
    assert (radii < 0.1).float().mean() == pytest.approx(0.25, abs=0.1)  # the share of the disc's area
    tiny = 1e-30 * torch.randn(4, 3, 4, 4, generator=generator(0))
    assert torch.linalg.vector_norm(L2(1.0).step(tiny, 0.3).flatten(1), dim=1) == pytest.approx([0.3] * 4, rel=1e-5)


@pytest.mark.parametrize("ball", [Linf, L2])
def test_a_step_along_a_gradient_of_zeros_is_none_and_one_along_the_least_gradient_has_its_length(ball: type) -> None:
    gradient = torch.zeros(3, 1, 2, 2)
    gradient[1, 0, 0, 0], gradient[2] = 1e-45, 1e-45
    step = ball(1.0).step(gradient, 1000.0)
    assert torch.equal(step[0], torch.zeros(1, 2, 2))
    assert ball(1.0).distance(step, torch.zeros_like(step))[1:] == pytest.approx([1000.0] * 2)


def test_an_linf_start_fills_the_ball_on_both_sides() -> None:
    clean = torch.full((20, 3, 4, 4), 0.5)
    offset = Linf(0.1).random_start(clean, range(20), 0) - clean
    assert offset.min() < -0.095 and offset.max() > 0.095
    assert offset.mean() == pytest.approx(0.0, abs=0.01) and offset.abs().mean() == pytest.approx(0.05, abs=0.01)
