"""PGD in the low frequencies (Guo et al. 2019, "Low frequency adversarial perturbation"; Sharma et al. 2019).

A purifier that draws fine detail anew keeps coarse structure, and that is where such a perturbation lives.

Shapes: N images, B of them, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.pgd import PGD
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_share


@dataclass(frozen=True, kw_only=True)
class LowFrequency(PGD):
    """PGD along the low frequencies of its gradient, from the clean image: a check on defences that remove high ones.

    Within L2 the change stays low, but for what the box [0,1] cuts off; within L-inf a step is the sign of the low
    gradient, which has edges.

    Args:
        share: of the frequencies of the discrete cosine transform, along each side, that are kept; in (0,1].
        steps, alpha, random_start, restarts, momentum, keep: see `PGD`; the random start has all frequencies.
        norm, eps, loss, early_stop, seed: see `ImageAttack`.

    Raises:
        UserError: a share out of range; or see `PGD`.
    """

    share: float = 0.5
    random_start: bool = False
    loss: str = "margin"  # where PGD starts at the clean image, cross-entropy found half as much

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store(share=parse_share("share", self.share))
        if not self.share:
            raise UserError("attack.share is 0, which keeps no frequency: give a number above 0, such as 0.5.")

    @property
    def baseline(self) -> bool:
        return True  # it leaves most of the ball alone

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        return super().ascend(_LowPass(oracle, float(self.share)), images, sample_ids, threat, start)


class _LowPass(ImageOracle):
    """An oracle whose gradients have low frequencies alone; what it counts and notes is the other's."""

    def __init__(self, oracle: ImageOracle, share: float) -> None:
        self.__dict__ |= vars(oracle)
        self.share = share

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = super().gradient(images, rows)
        return loss, low_pass(gradient, self.share)

    def repeated(self, rows: Tensor, counter: object) -> ImageOracle:
        return _LowPass(super().repeated(rows, counter), self.share)  # type: ignore[arg-type]


def low_pass(images: Tensor, share: float) -> Tensor:
    """(B,C,H,W) -> the part of it in the lowest ``share`` of the frequencies along each side, at least one."""
    down, across = (_projection(side, share, images) for side in images.shape[-2:])
    return down @ images @ across


def _projection(side: int, share: float, like: Tensor) -> Tensor:
    """Projection (side, side) onto the lowest cosines (DCT-II) along one side; symmetric."""
    kept = max(1, round(share * side))
    places = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    cosines = torch.cos(torch.arange(kept, dtype=torch.float64)[:, None] * places) * math.sqrt(2.0 / side)
    cosines[0] /= math.sqrt(2.0)
    return (cosines.T @ cosines).to(like)
