"""The Style-Transformer encoder of images into the codes of a StyleGAN2 (Hu et al. 2022, arXiv 2203.07932).

Shapes: B batch, H height, W width; L latents, coarse to fine, of D numbers.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.models.generators.pyramid import Pyramid

_HEADS = 4


class StyleTransformerEncoder(Pyramid):
    """An encoder with random weights, in eval mode; `load` reads one from a file.

    Queries, one a latent, look at the features of the image from coarse to fine. They are learned numbers ``z`` (1,L,D)
    behind the mapping of the generator; its output is what is added to the average code.

    Args:
        latents: L; the published network for cars has 16.
        width: channels of the first layer; the published networks have 64. D is eight times that.
        seed: of the weights; the global generator is left alone.
    """

    def __init__(self, *, latents: int = 16, width: int = 64, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(width)
            self.latents = latents
            self.z = nn.Parameter(torch.randn(1, latents, self.style_dim))
            self.transformerlayer_coarse = self._layer()
            self.transformerlayer_medium = self._layer()
            self.transformerlayer_fine = self._layer()
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> "StyleTransformerEncoder":
        """A frozen encoder from a file; see `robustcli.models.generators.style_files`."""
        from robustcli.models.generators.style_files import load_style_transformer

        return load_style_transformer(path)

    def forward(self, images: Tensor, query: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1], published network: 192 x 256, and queries (B,L,D) -> (B,L,D), less the average code."""
        layers = self.transformerlayer_coarse, self.transformerlayer_medium, self.transformerlayer_fine
        for layer, features in zip(layers, self.levels(images), strict=True):
            query = layer(query, features.flatten(2).transpose(1, 2))
        return query

    def _layer(self) -> nn.TransformerDecoderLayer:
        return nn.TransformerDecoderLayer(self.style_dim, _HEADS, 2 * self.style_dim, batch_first=True)
