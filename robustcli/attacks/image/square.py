"""Square Attack (Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random
search"), L-inf and L2: it reads losses alone, no gradient.

Shapes: N samples, B samples not fooled yet, C channels, H height, W width, S side of a window, U proposals a pass, D
uniform numbers of a proposal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle, copies_per_pass
from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.seeding import generator

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of p, by query of 10,000; section 5 of the paper
_FEW, _MANY = 0.25, 0.5  # shares of the samples that accept: below, twice as many proposals a pass; above, half


@dataclass(frozen=True, kw_only=True)
class Square(ImageAttack):
    """Random search over square windows: a proposal that raises the loss is accepted, any other is dropped.

    Args:
        queries: forward passes a sample, the start among them; 1 or more.
        p_init: share of the pixels that the first windows cover, in (0,1]; it is halved at the paper's points, which
            are rescaled to ``queries``.
        norm, eps, loss, early_stop, seed: see `ImageAttack`; the paper's loss is ``margin``.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    queries: int = 5000
    p_init: float = 0.8
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("queries", self.queries, 1)
        self._store(p_init=parse_number("p_init", self.p_init))
        if not 0 < self.p_init <= 1:
            raise UserError(f"attack.p_init is {self.p_init}: expected a share above 0 and up to 1, such as 0.8.")
        if self.loss == "infonce":
            raise UserError("attack.loss=infonce moves all images together, but Square each on its own: use PGD.")

    def passes(self, problem: Problem) -> Passes:
        return forward(self.queries).bounded(self.early_stop and problem.stops_early)

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        sampler = _LinfSampler(threat.ball) if threat.norm == "linf" else _L2Sampler(threat.ball)
        x_start = sampler.start(images, sample_ids, self.seed) if start is None else start
        x_start = threat.project(x_start, images)
        rows = torch.arange(len(images), device=images.device)
        state = _State(rows, images, x_start, oracle.loss(x_start, rows).clone(), torch.ones_like(rows))
        result, lookahead = x_start.clone(), 1
        # All draws of a sample beforehand, (queries, D) from a generator of its own: batch mates change nothing.
        shape = self.queries, sampler.uniforms(images.shape[1])
        draws = torch.stack([
            torch.rand(shape, generator=generator(self.seed, "square", sample_id)) for sample_id in sample_ids
        ])  # fmt: skip
        schedule = torch.tensor([p_selection(self.p_init, query, self.queries) for query in range(self.queries)])
        # A proposal costs a forward pass. Where few are accepted, several share a pass of the model, which costs less
        # per image; results and query counts are those of trying them one after the other.
        while True:
            finished = oracle.is_fooled(state.rows) | (state.queries_used >= self.queries)
            if bool(finished.any()):
                result[state.rows[finished]] = state.x_best[finished]
                state = state.subset(~finished)
            if not len(state.rows):
                return result
            lookahead = min(lookahead, copies_per_pass(state.x_best))
            accepted = state.accept(self._propose(sampler, state, draws, schedule, lookahead), oracle, self.queries)
            lookahead = 2 * lookahead if accepted < _FEW else max(lookahead // 2, 1) if accepted > _MANY else lookahead

    def _propose(
        self,
        sampler: "_LinfSampler | _L2Sampler",
        state: "_State",
        draws: Tensor,
        schedule: Tensor,
        lookahead: int,
    ) -> Tensor:
        """(U,B,C,H,W): the next U = ``lookahead`` proposals of each sample, all made from its best image so far."""
        later = torch.arange(lookahead, device=state.rows.device)[:, None]
        numbers = (state.queries_used + later).clamp_(max=self.queries - 1).flatten().cpu()
        repeated = state.repeated(lookahead)
        drawn, shares = draws[repeated.rows.cpu(), numbers].to(state.x_best), schedule[numbers]
        if bool((shares == shares[0]).all()):  # p lasts for hundreds of queries: mostly all samples have the same one
            return sampler.propose(repeated, drawn, float(shares[0])).view(lookahead, *state.x_best.shape)
        proposals = torch.empty_like(repeated.x_best)
        for p in sorted(set(shares.tolist())):
            mask = (shares == p).to(state.rows.device)
            proposals[mask] = sampler.propose(repeated.subset(mask), drawn[mask], p)
        return proposals.view(lookahead, *state.x_best.shape)


def p_selection(p_init: float, query: int, queries: int) -> float:
    """Schedule of p, the share of the pixels in a window, at query number ``query`` of ``queries``."""
    query_of_10000 = query * 10_000 // queries
    return float(p_init / 2 ** sum(query_of_10000 > mark for mark in _HALVINGS))


@dataclass
class _State:
    """State of the samples that are not fooled yet; each field has their number B as its first dimension.

    Attributes:
        rows: in the oracle.
        x_best, loss_best: the best image so far, and its loss.
        queries_used: forward passes so far, the start among them.
    """

    rows: Tensor
    clean: Tensor
    x_best: Tensor
    loss_best: Tensor
    queries_used: Tensor

    def accept(self, proposals: Tensor, oracle: ImageOracle, queries: int) -> float:
        """Accept the first of proposals (U,B,C,H,W) that raises the loss or fools; the share of the samples that did.

        Proposals after one that is accepted were made from an image that is no longer the best: they do not count, nor
        do those beyond the number of ``queries``.
        """
        lookahead, rows = len(proposals), self.rows
        losses, fooled = (
            answer.view(lookahead, -1) for answer in oracle.peek(proposals.flatten(0, 1), rows.repeat(lookahead))
        )
        queries_left = (queries - self.queries_used).clamp_(max=lookahead)
        in_order = torch.arange(lookahead, device=rows.device)[:, None] < queries_left
        better = ((losses > self.loss_best) | self.loss_best.isnan() | fooled) & in_order
        accepted = torch.nonzero(better.any(0)).flatten()
        first = better[:, accepted].int().argmax(0), accepted
        # Most proposals fail: few images are copied.
        self.x_best[accepted], self.loss_best[accepted] = proposals[first], losses[first]
        oracle.note(rows[accepted], fooled[first])
        spent = queries_left.index_copy_(0, accepted, first[0] + 1)
        oracle.counter.queries.index_add_(0, rows.cpu(), spent.cpu())
        self.queries_used = self.queries_used + spent
        return len(accepted) / len(rows)

    def repeated(self, times: int) -> "_State":
        """All samples ``times`` times, one round after the other."""
        return self if times == 1 else self.subset(torch.arange(len(self.rows), device=self.rows.device).repeat(times))

    def subset(self, chosen: Tensor) -> "_State":
        """The samples that are ``chosen``, (B,) bool, or their numbers."""
        return _State(**{name: values[chosen] for name, values in vars(self).items()})


class _LinfSampler:
    """L-inf sampling distribution (algorithm 2): a window of one colour at the boundary of the ball; vertical stripes
    to begin with.
    """

    def __init__(self, ball: Ball) -> None:
        self._eps = ball.eps

    def uniforms(self, channels: int) -> int:
        return 2 + channels

    def start(self, clean: Tensor, sample_ids: Sequence[int], seed: int) -> Tensor:
        channels, _, width = clean.shape[1:]
        signs = _signs(sample_noise((channels, 1, width), sample_ids, seed, "square", "start").to(clean))
        return clean + self._eps * signs

    def propose(self, state: _State, uniforms: Tensor, p: float) -> Tensor:
        height, width = state.x_best.shape[-2:]
        side = min(max(round(math.sqrt(p * height * width)), 1), height, width)
        window, proposal = _window(uniforms[:, :2], state.x_best, side), state.x_best.clone()
        rim = state.clean[window] + self._eps * _signs(uniforms[:, 2:])[..., None, None]
        proposal[window] = rim.clamp_(0.0, 1.0)
        return proposal


class _L2Sampler:
    """L2 sampling distribution (algorithm 3): two smooth bumps of opposite sign in one window, whose norm is taken from
    a second window.
    """

    def __init__(self, ball: Ball) -> None:
        self._ball, self._eps = ball, ball.eps
        self._pairs: dict[int, Tensor] = {}

    def uniforms(self, channels: int) -> int:
        return 5 + channels

    def start(self, clean: Tensor, sample_ids: Sequence[int], seed: int) -> Tensor:
        """Five by five bumps of random signs, or as many as fit, scaled to the whole budget."""
        channels, height, width = clean.shape[1:]
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        uniforms = sample_noise((channels + 1, down, across), sample_ids, seed, "square", "start").to(clean)
        bumps = _oriented(self._pair(side, clean), uniforms[:, :1])  # (B,1,down,across,S,S)
        tiles = bumps * _signs(uniforms[:, 1:])[..., None, None]
        direction, (top, left) = torch.zeros_like(clean), (height % side // 2, width % side // 2)
        whole = tiles.transpose(3, 4).reshape(len(clean), channels, down * side, across * side)
        direction[:, :, top : top + down * side, left : left + across * side] = whole
        return self._filled(self._ball.step(direction, self._eps), clean)

    def _filled(self, delta: Tensor, clean: Tensor) -> Tensor:
        """``clean + delta`` in the box, where other pixels take over what it cuts off: of images with many black and
        white pixels that is much of the budget.
        """
        inside = (clean + delta).clamp_(0.0, 1.0) - clean
        return self._ball.project(clean + self._ball.step(inside, self._eps), clean)

    def propose(self, state: _State, uniforms: Tensor, p: float) -> Tensor:
        height, width = state.x_best.shape[-2:]
        side = min(max(round(math.sqrt(p * height * width)), 3) | 1, height, width)
        delta = state.x_best - state.clean
        first, second = (_window(uniforms[:, at : at + 2], delta, side) for at in (0, 2))
        unused = (self._eps**2 - (delta**2).sum((1, 2, 3), keepdim=True)).clamp(min=0.0) / delta.shape[1]
        old_window, norms_before = delta[first], (delta**2).sum((2, 3), keepdim=True)
        delta[first] = delta[second] = 0.0
        available = (unused + norms_before - (delta**2).sum((2, 3), keepdim=True)).clamp(min=0.0).sqrt()
        bump = _oriented(self._pair(side, delta), uniforms[:, 4, None]) * _signs(uniforms[:, 5:])[..., None, None]
        new = bump + _unit(old_window)
        delta[first] = available * _unit(new)
        return self._filled(delta, state.clean)

    def _pair(self, side: int, like: Tensor) -> Tensor:
        if side not in self._pairs:
            self._pairs[side] = bump_pair(side).to(like)
        return self._pairs[side]


def bump_pair(side: int) -> Tensor:
    """(S,S) of norm 1: a bump and beside it its negative, each of norm 1 before (equation 2 of the paper)."""
    pair = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
    unit: Tensor = pair / pair.norm()
    return unit


def _bump(height: int, width: int) -> Tensor:
    """(height, width) of norm 1: sums of 1 / j^2 that fall with the distance from the middle."""
    if not height:
        return torch.zeros(0, width)
    top = max(height, width) // 2 + 1
    heights = (1.0 / torch.arange(1, top + 1) ** 2).flip(0).cumsum(0).flip(0)
    away = torch.maximum((torch.arange(height) - height // 2).abs()[:, None], (torch.arange(width) - width // 2).abs())
    unit: Tensor = heights[away] / heights[away].norm()
    return unit


def _oriented(bump: Tensor, draws: Tensor) -> Tensor:
    """(..., S, S): the bump or its transpose, each with a probability of one half."""
    return torch.where(draws[..., None, None] < 0.5, bump, bump.T)


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _unit(windows: Tensor) -> Tensor:
    """(B,C,S,S), each channel of norm 1, or 0."""
    unit: Tensor = windows / torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True).clamp(min=1e-12)
    return unit


def _corner(draws: Tensor, size: int, side: int) -> Tensor:
    """(B,) long: first pixel of a window of ``side`` along an edge of ``size``; all are equally likely."""
    return (draws * (size - side + 1)).long().clamp(max=size - side)


def _window(draws: Tensor, images: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index of a window of each image, the same for all of its channels."""
    count, channels, height, width = images.shape
    along = torch.arange(side, device=images.device)
    rows, columns = (_corner(draws[:, i], size, side)[:, None] + along for i, size in enumerate((height, width)))
    image, channel = (torch.arange(size, device=images.device) for size in (count, channels))
    return image.view(-1, 1, 1, 1), channel.view(1, -1, 1, 1), rows[:, None, :, None], columns[:, None, None, :]
