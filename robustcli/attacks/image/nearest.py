"""Nearest adversarial images of a minimum-norm search, and its restarts.

Shapes: N samples, B of them, C channels, H height, W width, Y classes.
"""

import torch
from torch import Tensor

from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.attacks.core.randomness import sample_noise

_ROUNDING = 1e-5  # of the largest logit
_CONFIRMATIONS = 2  # further passes that a success against a randomised model has to fool


def update(problem: Problem) -> Passes:
    """Passes of a forward pass whose result goes into `NearestAdversarials.update`, with what confirms it."""
    return forward(1 + (_CONFIRMATIONS if problem.randomised else 0))


class NearestAdversarials:
    """Running minimum over adversarial images: of each sample the one nearest to the clean image.

    Attributes:
        images: (N,C,H,W), the clean one where none was found.
        norm: (N,) float64, norm of the perturbation; infinite where none was found.

    Args:
        clean: (N,C,H,W) in [0,1].
        labels: (N,) long.
        ball: its norm measures the perturbations; its radius is not read.
        oracle: of the same samples. Of a randomised model one success proves little: a minimum over hundreds of draws
            would be that of the luckiest draw. There a success has to be confirmed by further passes, and a
            perturbation of zero is none: what chance alone gets wrong is measured without an attack.
        enough: a norm that need not be improved; None: the search never ends early.
    """

    def __init__(
        self, clean: Tensor, labels: Tensor, ball: Ball, oracle: LogitOracle, *, enough: float | None = None
    ) -> None:
        self.clean, self.labels, self.images = clean, labels, clean.clone()
        self._ball, self._oracle, self._enough = ball, oracle, 0.0 if enough is None else enough
        self.norm = clean.new_full((len(clean),), torch.inf, dtype=torch.float64)
        self._largest_logit = clean.new_zeros(len(clean))

    def update(self, images: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """(B,) bool: the image fools the model, of a randomised one not by luck; those nearer than the best so far are
        kept.

        Args:
            images: (B,C,H,W) in [0,1], the very ones that gave ``logits`` (B,Y).
            rows: (B,) long, of the samples; each at most once.
        """
        fooled = self._misclassified(logits, rows)
        if bool(fooled.any()):
            distance = self._ball.distance(images, self.clean[rows])
            if self._oracle.randomised:
                fooled = fooled & (distance > 0)
            nearer = fooled & (distance < self.norm[rows])
            lucky = nearer & ~self._fools_again(images, rows, nearer)
            fooled, nearer = fooled & ~lucky, nearer & ~lucky
            self.images[rows[nearer]], self.norm[rows[nearer]] = images[nearer], distance[nearer]
        return fooled

    def _fools_again(self, images: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        """(B,) bool: the image is one of ``candidates`` (B,) and fools in every further pass; a deterministic model
        gets none.
        """
        confirmed = candidates.clone()
        for _ in range(_CONFIRMATIONS if self._oracle.randomised else 0):
            rest = torch.nonzero(confirmed).flatten()
            if not len(rest):
                break
            logits = self._oracle.logits(images[rest], rows[rest])
            confirmed[rest] = self._misclassified(logits, rows[rest])
        return confirmed

    def _misclassified(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B,) bool: a wrong logit is above the label's by more than rounding, so that the model is fooled in any
        batch.
        """
        return margin(logits, self.labels[rows]) > self.least_margin(logits, rows)

    def least_margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B,): margin of logits (B,Y) of ``rows`` (B,) below which a misclassification may be rounding.

        It goes by the largest logit of the sample so far: logits such as (0, s) vanish at the boundary themselves, but
        what they are rounded to does not.
        """
        largest = torch.maximum(self._largest_logit[rows], logits.detach().abs().amax(1).to(self._largest_logit))
        self._largest_logit[rows] = largest
        return _ROUNDING * largest.to(logits)

    def merge(self, other: "NearestAdversarials", positions: Tensor, rows: Tensor) -> None:
        """Keep the nearer images of another search, whose ``positions`` (B,) hold the samples ``rows`` (B,)."""
        nearer = other.norm[positions] < self.norm[rows]
        rows, positions = rows[nearer], positions[nearer]
        self.images[rows], self.norm[rows] = other.images[positions], other.norm[positions]

    def unfinished(self, rows: Tensor) -> Tensor:
        """(B,) bool: the search of each of ``rows`` goes on, its norm is above ``enough``."""
        return self.norm[rows] > self._enough

    def bisect(self, oracle: LogitOracle, passes: int) -> None:
        """Bisect the segment from the clean to the adversarial image for the boundary, in ``passes`` forward passes."""
        rows = torch.nonzero((self.norm > 0) & (self.norm < torch.inf)).flatten()
        if not len(rows):
            return
        clean, delta = self.clean[rows], self.images[rows] - self.clean[rows]
        low, high = delta.new_zeros(len(rows), 1, 1, 1), delta.new_ones(len(rows), 1, 1, 1)
        for _ in range(passes):
            middle = (low + high) / 2
            x_adv = (clean + middle * delta).clamp(0, 1)
            fooled = self.update(x_adv, rows, oracle.logits(x_adv, rows)).view(-1, 1, 1, 1)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)

    def first_iterates(self, rows: Tensor, sample_ids: Tensor, radius: float, *parts: int | str) -> Tensor:
        """First iterates (B,C,H,W) of a restart: the clean images in the first, number 0, which is the last of
        ``parts``.

        The others start in a random direction, half as far as the nearest adversarial image so far, or as ``radius``
        (FAB, Croce and Hein 2020, section 3.3); their draws depend on ``parts`` and the samples' ids (N,) alone.
        """
        clean = self.clean[rows]
        if parts[-1] == 0 or not len(rows):
            return clean
        ids = sample_ids[rows.to(sample_ids.device)].tolist()
        normal = self._ball.norm == "l2"
        noise = sample_noise(clean.shape[1:], ids, *parts, normal=normal).to(clean)
        direction = noise if normal else 2 * noise - 1
        length = 0.5 * self.norm[rows].clamp(max=radius) / self._ball.distance(direction, torch.zeros_like(direction))
        return (clean + length.to(clean).view(-1, 1, 1, 1) * direction).clamp(0, 1)
