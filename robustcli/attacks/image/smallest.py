"""The smallest changes that a search has seen mislead.

Shapes: N samples, B of them, C channels, H height, W width, Y classes.
"""

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.image.hyperplane import misled

_AGAIN = 2  # more answers that a success against a model that draws must mislead


class Smallest:
    """Of each sample the nearest image that was seen to mislead.

    Attributes:
        images: (N,C,H,W), the clean one where nothing was found.
        norm: (N,) float64, its distance; infinite where nothing was found.

    Args:
        clean: (N,C,H,W) in [0,1].
        labels: (N,) long.
        ball: of the norm in which changes are measured; its radius is not read.
        oracle: of the same samples. Where its answers are drawn, one that misleads proves little: a search that kept
            the smallest change over hundreds of draws would keep the luckiest. There a success has to mislead again,
            and no change at all is none: what chance alone gets wrong is told without an attack.
        enough: a distance that need not be improved; None: the search never ends early.
    """

    def __init__(
        self, clean: Tensor, labels: Tensor, ball: Ball, oracle: LogitOracle, *, enough: float | None = None
    ) -> None:
        self.clean, self.labels, self.images = clean, labels, clean.clone()
        self._ball, self._oracle, self._enough = ball, oracle, 0.0 if enough is None else enough
        self.norm = clean.new_full((len(clean),), torch.inf, dtype=torch.float64)

    def offer(self, images: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """(B,) bool, whether each image misleads, and not by luck; those that are nearer than what was known are kept.

        Args:
            images: (B,C,H,W) in [0,1], the very ones that gave ``logits`` (B,Y).
            rows: (B,) long, whose images these are; each at most once.
        """
        fooled = misled(logits, self.labels[rows])
        if bool(fooled.any()):
            distance = self._ball.distance(images, self.clean[rows])
            if self._oracle.randomised:
                fooled = fooled & (distance > 0)
            nearer = fooled & (distance < self.norm[rows])
            lucky = nearer & ~self._misleads_again(images, rows, nearer)
            fooled, nearer = fooled & ~lucky, nearer & ~lucky
            self.images[rows[nearer]], self.norm[rows[nearer]] = images[nearer], distance[nearer]
        return fooled

    def _misleads_again(self, images: Tensor, rows: Tensor, asked: Tensor) -> Tensor:
        """(B,) bool: whether each image that is ``asked`` (B,) misleads in every further answer."""
        standing = asked.clone()
        for _ in range(_AGAIN if self._oracle.randomised else 0):
            chosen = torch.nonzero(standing).flatten()
            if not len(chosen):
                break
            logits = self._oracle.logits(images[chosen], rows[chosen])
            standing[chosen] = misled(logits, self.labels[rows[chosen]])
        return standing

    def join(self, other: "Smallest", places: Tensor, rows: Tensor) -> None:
        """Keep what another search found nearer: its ``places`` (B,) hold the images of ``rows`` (B,)."""
        nearer = other.norm[places] < self.norm[rows]
        rows, places = rows[nearer], places[nearer]
        self.images[rows], self.norm[rows] = other.images[places], other.norm[places]

    def open(self, rows: Tensor) -> Tensor:
        """(B,) bool, whether it is worth to go on with each of ``rows``."""
        return self.norm[rows] > self._enough

    def shorten(self, oracle: LogitOracle, passes: int) -> None:
        """Halve, ``passes`` times, the interval between the clean image and what was found that holds the boundary."""
        rows = torch.nonzero((self.norm > 0) & (self.norm < torch.inf)).flatten()
        if not len(rows):
            return
        clean, move = self.clean[rows], self.images[rows] - self.clean[rows]
        low, high = move.new_zeros(len(rows), 1, 1, 1), move.new_ones(len(rows), 1, 1, 1)
        for _ in range(passes):
            middle = (low + high) / 2
            tried = (clean + middle * move).clamp(0, 1)
            fooled = self.offer(tried, rows, oracle.logits(tried, rows)).view(-1, 1, 1, 1)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)

    def start(self, rows: Tensor, sample_ids: Tensor, reach: float, *parts: int | str) -> Tensor:
        """(B,C,H,W), where a restart begins: the clean images for the first, number 0, which is the last of ``parts``.

        The others begin in a random direction, half as far as the smallest change that is known, or as ``reach``
        (Croce and Hein 2020, section 3.3); their draws depend on ``parts`` and the samples' ids (N,) alone.
        """
        clean = self.clean[rows]
        if parts[-1] == 0 or not len(rows):
            return clean
        ids = sample_ids[rows.to(sample_ids.device)].tolist()
        normal = self._ball.norm == "l2"
        noise = sample_noise(clean.shape[1:], ids, *parts, normal=normal).to(clean)
        way = noise if normal else 2 * noise - 1
        length = 0.5 * self.norm[rows].clamp(max=reach) / self._ball.distance(way, torch.zeros_like(way))
        return (clean + length.to(clean).view(-1, 1, 1, 1) * way).clamp(0, 1)
