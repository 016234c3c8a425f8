"""The fast gradient sign method (Goodfellow et al. 2015): one step of full length from the clean image.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.threat import Eps


class FGSM(ImageAttack):
    """The corner of the ball that the gradient at the clean image points to; for ``l2`` the point of the sphere.

    Args:
        norm, eps, loss, early_stop, seed: see `ImageAttack`. There is nothing to stop early, and nothing is drawn.
        sign: for ``l2``, move every pixel by the same amount, up or down as the gradient says (Serez et al. 2025), in
            place of the gradient's own direction; ``linf`` always does.
    """

    def __init__(
        self,
        *,
        norm: str = "linf",
        eps: Eps = "4/255",
        loss: str = "gallery",
        early_stop: bool = True,
        sign: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(norm=norm, eps=eps, loss=loss, early_stop=early_stop, seed=seed)
        self.sign = sign

    def find(self, oracle: ImageOracle, images: Tensor, sample_ids: Sequence[int], start: Tensor | None) -> Tensor:
        first = images if start is None else self.budget.project(start, images)
        _, gradient = oracle.gradient(first, torch.arange(len(images), device=images.device))
        way = gradient.sign() if self.sign else gradient
        return self.budget.project(first + self.budget.step(way, self.eps), images)
