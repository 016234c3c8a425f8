"""The e4e encoder of images into the codes of a StyleGAN2 (Tov et al., arXiv 2102.02766).

Shapes: B batch, C channels, H height, W width; L latents, coarse to fine, of D numbers.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.models.generators.pyramid import Pyramid
from robustcli.models.generators.stylegan import check_side
from robustcli.models.generators.upfirdn import EqualLinear

_COARSE, _MEDIUM = 3, 7  # latents below these read the coarse and the medium level


class E4EEncoder(Pyramid):
    """An encoder with random weights, in eval mode; `load` reads one from a file.

    Its output is what is added to the average code. All but the first latent are corrections of the first.

    Args:
        stylegan_size: side of the generator's images, which gives L = 2 log2(size) - 2.
        width: channels of the first layer; the published networks have 64. D is eight times that.
        seed: of the weights; the global generator is left alone.

    Raises:
        UserError: a size that no StyleGAN2 has.
    """

    def __init__(self, stylegan_size: int = 1024, *, width: int = 64, seed: int = 0) -> None:
        latents = 2 * check_side(stylegan_size) - 2
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(width)
            self.latents = latents
            self.styles = nn.ModuleList(
                Head(self.style_dim, halvings=4 if i < _COARSE else 5 if i < _MEDIUM else 6) for i in range(latents)
            )
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> "E4EEncoder":
        """A frozen encoder from a file; see `robustcli.models.generators.style_files`."""
        from robustcli.models.generators.style_files import load_e4e

        return load_e4e(path)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1], published networks: 256 x 256 -> (B,L,D), without the average code."""
        coarse, medium, fine = self.levels(images)
        first = self.styles[0](coarse)
        corrections = [
            head(coarse if i < _COARSE else medium if i < _MEDIUM else fine) for i, head in enumerate(self.styles) if i
        ]
        return torch.stack([first, *(first + correction for correction in corrections)], dim=1)


class Head(nn.Module):
    """Convolutions that each halve the side, down to one pixel, and a linear layer."""

    def __init__(self, channels: int, *, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs, self.linear = nn.Sequential(*layers), EqualLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C)."""
        found: Tensor = self.linear(self.convs(x).flatten(1))
        return found
