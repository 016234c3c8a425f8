"""The fast gradient sign method (Goodfellow et al. 2015): one step of full length from the clean image.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.base import ImageAttack
from robustcli.attacks.oracle import ImageOracle


class FGSM(ImageAttack):
    """The corner of the ball that the gradient at the clean image points to; for ``l2`` the point of the sphere.

    Args:
        norm, eps, loss, early_stop, seed: see `ImageAttack`. There is nothing to stop early, and nothing is drawn.
    """

    def find(self, oracle: ImageOracle, images: Tensor, sample_ids: Sequence[int], start: Tensor | None) -> Tensor:
        first = images if start is None else self.budget.project(start, images)
        _, gradient = oracle.gradient(first, torch.arange(len(images), device=images.device))
        return self.budget.project(first + self.budget.step(gradient, self.eps), images)
