"""Randomised smoothing: a classifier under Gaussian noise, and the L2 radius within which its vote is proven.

The vote of ``f(x + n)``, n ~ N(0, sigma^2 I), does not change within ``sigma Phi^-1(p)`` where p bounds the chance of
its class from below (Cohen et al. 2019, theorem 1 and algorithm CERTIFY). No attack is run, and none can beat it; it
is a claim on the vote under noise, not on the classifier without.

Shapes: B images, C channels, H height, W width, Y classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks.core.frozen import frozen
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

ABSTAINED = -1


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The certificate of Cohen et al. 2019 for a classifier, or for a defence in front of one.

    What the network takes is cut to [0,1] behind the noise, which is a part of the classifier that is smoothed.

    Args:
        sigma: standard deviation of the noise in [0,1] pixels, above 0.
        selection: draws by which the class is chosen; ``samples`` further ones bound its chance.
        alpha: chance, for each image, that its certificate is wrong.
        batch_size: noisy images of a pass.

    Raises:
        UserError: a value out of range.
    """

    sigma: float
    selection: int = 100
    samples: int = 1000
    alpha: float = 0.001
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise UserError(f"certify.sigma is {self.sigma}: it is a standard deviation in pixels, above 0.")
        if not 0 < self.alpha < 1:
            raise UserError(f"certify.alpha is {self.alpha}: it is a chance, between 0 and 1.")

    def certify(
        self, model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, names: Sequence[int], *, seed: int
    ) -> pd.DataFrame:
        """One row an image: ``predicted`` class (-1: abstained), certified ``radius`` (0 where it abstained), whether
        it is ``correct``, the ``label``, and the lower bound ``chance`` of the class chosen.

        Args:
            images: (B,C,H,W) in [0,1]; labels: (B,).
            names: of the images: the noise of each depends on its name and ``seed`` alone.
        """
        rows = []
        with frozen(model), torch.no_grad():
            for image, label, name in zip(images, labels.tolist(), names, strict=True):
                chosen = int(self._votes(model, image, self.selection, generator(seed, "select", name)).argmax())
                hits = int(self._votes(model, image, self.samples, generator(seed, "certify", name))[chosen])
                chance = lower_bound(hits, self.samples, self.alpha)
                sure = chance > 0.5
                radius = self.sigma * NormalDist().inv_cdf(chance) if sure else 0.0
                predicted = chosen if sure else ABSTAINED
                row = {"predicted": predicted, "radius": radius, "correct": predicted == label, "label": label}
                rows.append(row | {"chance": chance})
        return pd.DataFrame(rows)

    def _votes(self, model: Callable[[Tensor], Tensor], image: Tensor, count: int, source: torch.Generator) -> Tensor:
        """Votes (Y,) of ``count`` noisy copies of an image (C,H,W)."""
        votes = torch.zeros(0, dtype=torch.long)
        for size in [self.batch_size] * (count // self.batch_size) + [count % self.batch_size]:
            if not size:
                continue
            noise = torch.randn((size, *image.shape), generator=source).to(image)
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=source)))  # of a model that draws by itself
            logits = model((image + self.sigma * noise).clamp(0.0, 1.0))
            part = torch.bincount(logits.argmax(1).cpu(), minlength=logits.shape[1])
            votes = part if not len(votes) else votes + part
        return votes


def lower_bound(hits: int, trials: int, alpha: float) -> float:
    """The chance that ``hits`` of ``trials`` independent trials leave above it with confidence 1 - ``alpha``, one-sided
    (Clopper and Pearson 1934).
    """
    from scipy.special import betaincinv  # the quantile of the beta distribution, without the imports of scipy.stats

    return float(betaincinv(hits, trials - hits + 1, alpha)) if hits else 0.0


def certified_accuracy(table: pd.DataFrame, radius: float) -> float:
    """Share of images whose vote is correct and proven within the L2 ``radius``."""
    return float((table["correct"] & (table["radius"] >= radius)).mean())
