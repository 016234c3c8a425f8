"""The fast gradient sign method (Goodfellow et al. 2015): one step of full length from the clean image.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.passes import Passes, Problem, both
from robustcli.attacks.core.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class FGSM(ImageAttack):
    """FGSM: the corner of the L-inf ball in the direction of the gradient at the clean image; for ``l2`` the point of
    the sphere. One forward and backward pass.

    Args:
        sign: for ``l2``, move every pixel by the same amount, up or down as the gradient says (Serez et al. 2025), in
            place of the gradient's own direction; ``linf`` always does.
        norm, eps, loss, early_stop, seed: see `ImageAttack`. There is nothing to stop early, and nothing is drawn.
    """

    sign: bool = False

    @property
    def baseline(self) -> bool:
        return True  # a step of full length may overshoot: at an unbounded eps some images of a curved model stand

    def passes(self, problem: Problem) -> Passes:
        return both(1)

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        ball = threat.ball
        x_start = images if start is None else ball.project(start, images)
        _, gradient = oracle.gradient(x_start, torch.arange(len(images), device=images.device))
        direction = gradient.sign() if self.sign else gradient
        return ball.project(x_start + ball.step(direction, ball.eps), images)
