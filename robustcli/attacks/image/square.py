"""Square Attack (Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random
search"), L-inf and L2: it reads losses alone, no gradient.

Shapes: N samples, B samples that still stand, C channels, H height, W width, S side of a window,
U proposals at once, D draws of a proposal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageOracle, folds
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.seeding import generator

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; section 5 of the paper
_FEW, _MANY = 0.25, 0.5  # shares of the samples that keep a proposal: fewer, and more are tried at once, or less


@dataclass(frozen=True, kw_only=True)
class Square(ImageAttack):
    """Random search over square windows: a proposal that raises the loss is kept, any other is forgotten.

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

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        kind = _Squares(threat.ball) if threat.norm == "linf" else _Bumps(threat.ball)
        first = kind.start(images, sample_ids, self.seed) if start is None else start
        now = threat.project(first, images)
        rows = torch.arange(len(images), device=images.device)
        walk = _Walk(rows, images, now, oracle.loss(now, rows), torch.ones_like(rows))
        result, ahead = now.clone(), 1
        draws = torch.stack([
            torch.rand(self.queries, kind.draws(images.shape[1]), generator=generator(self.seed, "square", sample_id))
            for sample_id in sample_ids
        ])  # fmt: skip
        while True:
            over = oracle.done(walk.rows) | (walk.asked >= self.queries)
            if bool(over.any()):
                result[walk.rows[over]] = walk.now[over]
                walk = walk.part(~over)
            if not len(walk.rows):
                return result
            ahead = min(ahead, folds(walk.now))
            taken = walk.accept(self._propose(kind, walk, draws, ahead), oracle, self.queries)
            ahead = 2 * ahead if taken < _FEW else max(ahead // 2, 1) if taken > _MANY else ahead

    def _propose(self, kind: "_Squares | _Bumps", walk: "_Walk", draws: Tensor, ahead: int) -> Tensor:
        """(U,B,C,H,W): the next U = ``ahead`` proposals of each, all made from the best image so far."""
        numbers = torch.stack([walk.asked + later for later in range(ahead)]).clamp(max=self.queries - 1)
        drawn = draws[walk.rows.cpu(), numbers.cpu()].flatten(0, 1).to(walk.now)
        shares = torch.tensor([share(self.p_init, number, self.queries) for number in numbers.flatten().tolist()])
        wide = walk.part(torch.arange(len(walk.rows), device=walk.rows.device).repeat(ahead))
        proposals = torch.empty_like(wide.now)
        for part in sorted(set(shares.tolist())):  # one or two: a share lasts for hundreds of queries
            chosen = (shares == part).to(walk.rows.device)
            proposals[chosen] = kind.propose(wide.part(chosen), drawn[chosen], part)
        return proposals.view(ahead, *walk.now.shape)


def share(p_init: float, query: int, queries: int) -> float:
    """Share of the pixels in a window at number ``query`` of ``queries``."""
    place = query * 10_000 // queries
    return float(p_init / 2 ** sum(place > mark for mark in _HALVINGS))


@dataclass
class _Walk:
    """The samples that still stand: their rows, clean images, best images so far with their losses, and the queries
    that each has asked.
    """

    rows: Tensor
    clean: Tensor
    now: Tensor
    loss: Tensor
    asked: Tensor

    def accept(self, proposals: Tensor, oracle: ImageOracle, queries: int) -> float:
        """Keep what raises the loss, and what fools, of proposals (U,B,C,H,W); the share of the samples that kept one.

        Proposals after one that is kept were made from an image that is no longer the best: they do not count, nor do
        those beyond the number of ``queries``.
        """
        ahead, count, rows = len(proposals), len(self.rows), self.rows
        counter = QueryCounter.of(ahead * count)
        wide = oracle.repeated(rows, counter)
        losses = wide.loss(proposals.flatten(0, 1), torch.arange(ahead * count, device=rows.device)).view(ahead, -1)
        fooled = wide.fooled.view(ahead, -1).to(rows.device)
        left = (queries - self.asked).clamp(max=ahead)
        counts = torch.arange(ahead, device=rows.device)[:, None] < left
        better = ((losses > self.loss) | self.loss.isnan() | fooled) & counts
        taken, first, each = better.any(0), better.int().argmax(0), torch.arange(count, device=rows.device)
        self.now[taken] = proposals[first, each][taken]  # most proposals fail: few images are copied
        self.loss = torch.where(taken, losses[first, each], self.loss)
        oracle.fooled[rows.cpu()] = (fooled[first, each] & taken).cpu()
        used = torch.where(taken, first + 1, left)
        for number in range(ahead):
            asking = used > number
            oracle.counter.add(counter.part(number * count + each[asking]), rows[asking])
        self.asked = self.asked + used
        return float(taken.double().mean())

    def part(self, kept: Tensor) -> "_Walk":
        """The samples that are ``kept``, (B,) bool, or their numbers."""
        return _Walk(**{name: values[kept] for name, values in vars(self).items()})


class _Squares:
    """L-inf (algorithm 2): a window of one colour at the rim of the ball; stripes to begin with."""

    def __init__(self, ball: Ball) -> None:
        self._eps = ball.eps

    def draws(self, channels: int) -> int:
        return 2 + channels

    def start(self, clean: Tensor, sample_ids: Sequence[int], seed: int) -> Tensor:
        channels, _, width = clean.shape[1:]
        signs = _signs(sample_noise((channels, 1, width), sample_ids, seed, "square", "start").to(clean))
        return clean + self._eps * signs

    def propose(self, walk: _Walk, draws: Tensor, part: float) -> Tensor:
        height, width = walk.now.shape[-2:]
        side = min(max(round(math.sqrt(part * height * width)), 1), height, width)
        window, proposal = _window(draws[:, :2], walk.now, side), walk.now.clone()
        rim = walk.clean[window] + self._eps * _signs(draws[:, 2:])[..., None, None]
        proposal[window] = rim.clamp_(0.0, 1.0)
        return proposal


class _Bumps:
    """L2 (algorithm 3): two smooth bumps of opposite sign in one window, paid for by the norm of a second window."""

    def __init__(self, ball: Ball) -> None:
        self._ball, self._eps = ball, ball.eps
        self._pairs: dict[int, Tensor] = {}

    def draws(self, channels: int) -> int:
        return 5 + channels

    def start(self, clean: Tensor, sample_ids: Sequence[int], seed: int) -> Tensor:
        """Five by five bumps of random signs, or as many as fit, scaled to the whole budget."""
        channels, height, width = clean.shape[1:]
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        draws = sample_noise((channels + 1, down, across), sample_ids, seed, "square", "start").to(clean)
        bumps = _oriented(self._pair(side, clean), draws[:, :1])  # (B,1,down,across,S,S)
        tiles = bumps * _signs(draws[:, 1:])[..., None, None]
        way, (top, left) = torch.zeros_like(clean), (height % side // 2, width % side // 2)
        whole = tiles.transpose(3, 4).reshape(len(clean), channels, down * side, across * side)
        way[:, :, top : top + down * side, left : left + across * side] = whole
        return clean + self._ball.step(way, self._eps)

    def propose(self, walk: _Walk, draws: Tensor, part: float) -> Tensor:
        height, width = walk.now.shape[-2:]
        side = min(max(round(math.sqrt(part * height * width)), 3) | 1, height, width)
        delta = walk.now - walk.clean
        first, second = (_window(draws[:, at : at + 2], delta, side) for at in (0, 2))
        unused = (self._eps**2 - (delta**2).sum((1, 2, 3), keepdim=True)).clamp(min=0.0) / delta.shape[1]
        old, before = delta[first], (delta**2).sum((2, 3), keepdim=True)
        delta[first] = delta[second] = 0.0
        available = (unused + before - (delta**2).sum((2, 3), keepdim=True)).clamp(min=0.0).sqrt()
        bump = _oriented(self._pair(side, delta), draws[:, 4, None]) * _signs(draws[:, 5:])[..., None, None]
        new = bump + _unit(old)
        delta[first] = available * _unit(new)
        return self._ball.project(walk.clean + delta, walk.clean)

    def _pair(self, side: int, like: Tensor) -> Tensor:
        if side not in self._pairs:
            self._pairs[side] = bump_pair(side).to(like)
        return self._pairs[side]


def bump_pair(side: int) -> Tensor:
    """(S,S) of length 1: a bump and beside it its negative, each of length 1 before (equation 2 of the paper)."""
    pair = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
    unit: Tensor = pair / pair.norm()
    return unit


def _bump(height: int, width: int) -> Tensor:
    """(height, width) of length 1: sums of 1 / j^2 that fall with the distance from the middle."""
    if not height:
        return torch.zeros(0, width)
    top = max(height, width) // 2 + 1
    heights = (1.0 / torch.arange(1, top + 1) ** 2).flip(0).cumsum(0).flip(0)
    away = torch.maximum((torch.arange(height) - height // 2).abs()[:, None], (torch.arange(width) - width // 2).abs())
    unit: Tensor = heights[away] / heights[away].norm()
    return unit


def _oriented(bump: Tensor, draws: Tensor) -> Tensor:
    """(..., S, S): lying or standing, each with a chance of one half."""
    return torch.where(draws[..., None, None] < 0.5, bump, bump.T)


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _unit(windows: Tensor) -> Tensor:
    """(B,C,S,S), each channel of length 1, or 0."""
    unit: Tensor = windows / torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True).clamp(min=1e-12)
    return unit


def _place(draws: Tensor, size: int, side: int) -> Tensor:
    """(B,) long: where a window of ``side`` begins on an edge of ``size``; all places are equally likely."""
    return (draws * (size - side + 1)).long().clamp(max=size - side)


def _window(draws: Tensor, images: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of a window of each image, one place for all of its channels."""
    count, channels, height, width = images.shape
    along = torch.arange(side, device=images.device)
    rows, columns = (_place(draws[:, i], size, side)[:, None] + along for i, size in enumerate((height, width)))
    own, channel = (torch.arange(size, device=images.device) for size in (count, channels))
    return own.view(-1, 1, 1, 1), channel.view(1, -1, 1, 1), rows[:, None, :, None], columns[:, None, None, :]
