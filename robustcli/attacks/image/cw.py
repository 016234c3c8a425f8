"""The L2 attack of Carlini and Wagner (2017), every sample with a constant, an Adam and an end of its own.

Shapes: N samples, B of them, C channels, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import MinimumNormAttack
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.smallest import Smallest
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

_INSIDE = 1 - 1e-6  # of [-1,1]; at its ends the sine has no slope
_CHECKS = 10  # looks for progress in a descent
_PROGRESS = 0.9999  # of the lowest loss before; what is above it is none
_PATIENCE = 1  # looks without progress that a sample may have in a row
_HALVINGS = 8  # forward passes at the end of a search, which undo what Adam's steps overshot
_REACH = 0.5  # L2, of a restart where no success bounds it
_DECAY = (0.9, 0.999)  # of Adam's moments


@dataclass(frozen=True, kw_only=True)
class CW(MinimumNormAttack):
    """Descends on ``|x - clean|^2 + c max(kappa - margin, 0)`` in the space where ``x = (sin(w) + 1) / 2``.

    The paper has a tanh there, out of whose flat ends black and white pixels hardly come: of handwritten digits the
    smallest change found is a third larger with it, and on some nothing is found. Both have the same slope in the
    middle, so that ``lr`` means the same.

    The smallest success among all iterates is kept, whatever ``c`` it was found with, and at the end of each search
    shortened to where the model is just misled, which the paper does not do.

    Args:
        c: weight of the margin; of the first descent, where it is searched for.
        kappa: margin of the logits that the descent asks for; an iterate counts as soon as it misleads.
        steps: of a descent, at most.
        lr: Adam's step size, in the space of ``w``.
        search_steps: descents of the search for ``c``: ten times more as long as there is no success, then halving the
            interval; 1: ``c`` is what it is.
        restarts: searches; the first begins at the clean image, the others at random, half as far as what is known.
        norm: ``l2``.
        eps, seed: see `MinimumNormAttack`.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    c: float = 1e-2
    kappa: float = 0.0
    steps: int = 100
    lr: float = 1e-2
    search_steps: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(**{key: parse_number(key, getattr(self, key)) for key in ("c", "kappa", "lr")})
        at_least("steps", self.steps, 0)
        at_least("search_steps", self.search_steps, 1)
        at_least("restarts", self.restarts, 1)
        if self.c == 0:
            raise UserError("attack.c is 0: nothing would be attacked, give more, such as 0.01.")
        self.check(self.threat)

    def check(self, threat: ThreatModel) -> None:
        if threat.norm != "l2":
            raise UserError(
                f"threat.norm is {threat.norm!r}, but Carlini and Wagner's attack is for l2: threat=smallest, or "
                "threat.norm=l2 with its threat.eps; attack=fmn is for both norms."
            )

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        best = Smallest(images, labels, threat.ball, oracle)
        rows = torch.arange(len(images), device=images.device)
        for restart in range(self.restarts):
            start = _inverse(best.start(rows, sample_ids, _REACH, self.seed, "cw", restart))
            c = _Constant(images.new_full((len(images),), self.c))
            for _ in range(self.search_steps):
                c.narrow(self._descend(oracle, best, start, c.value))
            best.shorten(oracle, _HALVINGS)
        return best.images

    def _descend(self, oracle: LogitOracle, best: Smallest, start: Tensor, c: Tensor) -> Tensor:
        """(N,) bool, whether each sample was misled on the way."""
        fooled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        rows, w, adam = torch.arange(len(start), device=start.device), start, _Adam(start, self.lr)
        progress = _Progress(best.norm)
        for step in range(self.steps):
            loss, slope, now = self._loss(oracle, best, w, rows, c)
            fooled[rows] |= now
            w = adam.step(w, slope)
            progress.see(loss)
            if (step + 1) % max(self.steps // _CHECKS, 1) == 0:
                going = progress.look(best.norm[rows])
                rows, w = rows[going], w[going]
                adam.keep(going)
            if not len(rows):
                break
        return fooled

    def _loss(
        self, oracle: LogitOracle, best: Smallest, w: Tensor, rows: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,), its gradient (B,C,H,W) by ``w``, and whether each image misleads (B,)."""
        images, labels, weight = _images(w), best.labels[rows], c[rows]
        # The gradient of the margin, not of what is cut off at 0: a zero then means that the model gave none.
        logits, value, uphill = oracle.gradient(images, rows, lambda logits, _: margin(logits, labels))
        now, away = best.offer(images, rows, logits), images - best.clean[rows]
        short = self.kappa - value
        pull = torch.where(short > 0, weight, 0.0).view(-1, 1, 1, 1)
        loss = away.square().flatten(1).sum(1) + weight * short.clamp(min=0)
        return loss, (2 * away - pull * uphill) * w.cos() / 2, now


class _Constant:
    """The search for ``c`` (N,), of each sample on its own."""

    def __init__(self, value: Tensor) -> None:
        self.value, self._low, self._high = value, torch.zeros_like(value), torch.full_like(value, torch.inf)

    def narrow(self, fooled: Tensor) -> None:
        """The next ``c``, now that it is known whether this one ``fooled`` (N,)."""
        self._high = torch.where(fooled, self.value, self._high)
        self._low = torch.where(fooled, self._low, self.value)
        middle = (self._low + self._high) / 2
        self.value = torch.where(self._high < torch.inf, middle, 10 * self.value)


class _Progress:
    """Which samples still get anywhere: their loss falls, or a smaller change is found; one idle look is forgiven.

    Adam's path swings: after the first success it goes on for a while before it turns to the clean image.
    """

    def __init__(self, norm: Tensor) -> None:
        self._norm, self._lowest = norm.clone(), torch.full_like(norm, torch.inf)
        self._now, self._idle = self._lowest.clone(), torch.zeros_like(norm)

    def see(self, loss: Tensor) -> None:
        """The loss (B,) of an iterate; the lowest since the last look counts."""
        self._now = torch.minimum(self._now, loss)

    def look(self, norm: Tensor) -> Tensor:
        """(B,) bool, which go on, given the smallest changes (B,) that are known; the others are forgotten."""
        better = (self._now <= _PROGRESS * self._lowest) | ((norm <= _PROGRESS * self._norm) & (norm < torch.inf))
        idle = torch.where(better, 0.0, self._idle + 1)
        going = idle <= _PATIENCE
        self._lowest, self._idle = torch.minimum(self._lowest, self._now)[going], idle[going]
        self._norm, self._now = norm[going].clone(), torch.full_like(self._lowest, torch.inf)
        return going


class _Adam:
    """Adam (Kingma and Ba 2015) for samples that leave at different times; no entry reads another."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self._first, self._second, self._lr, self._steps = torch.zeros_like(like), torch.zeros_like(like), lr, 0

    def step(self, w: Tensor, slope: Tensor) -> Tensor:
        """``w`` after one more step."""
        self._steps += 1
        short, long = _DECAY
        self._first.lerp_(slope, 1 - short)
        self._second.mul_(long).addcmul_(slope, slope, value=1 - long)
        size = (self._second / (1 - long**self._steps)).sqrt_().add_(1e-8)
        return w - self._lr / (1 - short**self._steps) * self._first / size

    def keep(self, going: Tensor) -> None:
        """Forget the samples that are not ``going`` (B,)."""
        self._first, self._second = self._first[going], self._second[going]


def _images(w: Tensor) -> Tensor:
    return (w.sin() + 1) / 2


def _inverse(images: Tensor) -> Tensor:
    """``w`` of images in [0,1], moved off the ends."""
    return torch.asin((2 * images - 1) * _INSIDE)
