"""The interface of a multiple-latent-variable generative model (MLVGM) to a purifier.

Shapes: B batch, C channels, H height, W width; L latents, coarse to fine, of which one is (C,h,w) or (D,).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Generator(nn.Module, ABC):
    """Hierarchical autoencoder of L latents, each with a prior given those before it.

    ``decode`` mixes latent i as ``z_i = (1 - alpha_i) z_i(image) + alpha_i z_i(drawn)`` on the way down: 0 keeps the
    latent of the encoder, 1 draws it anew (Serez et al., arXiv 2412.03453, section 3). All is differentiable, and
    ``requires_grad`` of the weights is left as it was.

    Attributes:
        latent_shapes: of one sample's latents, coarse to fine, L of them.
        resolution: (C,H,W) of the images.
        bounded: the images that it makes are within [0,1].
    """

    latent_shapes: tuple[tuple[int, ...], ...]
    resolution: tuple[int, int, int]
    bounded = True

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """The bottom-up pass: deterministic, done once an image however many draws follow.

        Args:
            images: (B,C,H,W) in [0,1].

        Returns:
            features, each with B as its first dimension, so that they can be repeated for several draws.
        """

    @abstractmethod
    def latents(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's latents, coarse to fine: those that ``decode`` keeps where every alpha is 0.

        Args:
            features: of ``encode``.

        Returns:
            L tensors (B, *latent shape).
        """

    @abstractmethod
    def decode(
        self, features: Sequence[Tensor], alphas: Tensor, noise: Sequence[Tensor], *, checkpoint: bool = False
    ) -> Tensor:
        """The top-down pass, drawn latents mixed into those of the encoder.

        Args:
            features: of ``encode``.
            alphas: (L,) or (B,L) in [0,1], coarse to fine; 0 keeps the encoder's latent.
            noise: L standard-normal tensors (B, *latent shape).
            checkpoint: keep less for the gradient and compute it again; the gradient is the same.

        Returns:
            images (B,C,H,W), not clamped: within [0,1] only if the generator's output is.
        """

    @abstractmethod
    def sample(self, noise: Sequence[Tensor]) -> Tensor:
        """Images (B,C,H,W) from the prior alone, as ``decode`` with every alpha 1; no features are needed.

        Args:
            noise: L standard-normal tensors (B, *latent shape).
        """
