"""A generator that needs no training: the coarse latent is the image at half its size, the fine one what is left."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.models.generators import Generator


class TwoLatents(Generator):
    """Reconstructs images of 1 x 8 x 8 exactly; what is drawn anew is grey coarsely and nearly nothing finely."""

    latent_shapes = ((1, 4, 4), (1, 8, 8))
    resolution = (1, 8, 8)

    def encode(self, images: Tensor) -> list[Tensor]:
        coarse = F.avg_pool2d(images, 2)
        return [coarse, images - self._up(coarse)]

    def latents(self, features: Sequence[Tensor]) -> list[Tensor]:
        return list(features)

    def decode(
        self, features: Sequence[Tensor], alphas: Tensor, noise: Sequence[Tensor], *, checkpoint: bool = False
    ) -> Tensor:
        drawn = [0.3 + 0.1 * noise[0], 0.05 * noise[1]]
        coarse, fine = (torch.lerp(kept, new, alpha) for kept, new, alpha in zip(features, drawn, alphas, strict=True))
        return (self._up(coarse) + fine).clamp(0.0, 1.0)

    def sample(self, noise: Sequence[Tensor]) -> Tensor:
        return self.decode([torch.zeros_like(each) for each in noise], torch.ones(2), noise)

    @staticmethod
    def _up(coarse: Tensor) -> Tensor:
        return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
