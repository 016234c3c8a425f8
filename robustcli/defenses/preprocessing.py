"""Pre-processing of images before the encoder of a purifier, or alone as a baseline: noise, blur, JPEG.

Shapes: B images, C channels, H height, W width; pixels in [0,1].
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.defenses.jpeg import JPEG
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean


class NormNoise(nn.Module):
    """Gaussian noise of an exact length, clamped to [0,1] (Serez et al. 2025; eps 4.0 for their faces and cars, 2.0 for
    identities).

    Args:
        eps: L2 norm of the noise over all pixels of an image, before the clamp, 0 or more.

    Raises:
        UserError: ``eps`` is negative, infinite or NaN.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        if not 0 <= eps < math.inf:
            raise UserError(f"eps of the noise is {eps}: it is an L2 norm in pixels of [0, 1], 0 or more, such as 2.0.")
        self.eps = float(eps)

    @property
    def randomised(self) -> bool:
        """True if two passes over the same image differ."""
        return self.eps > 0

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B,C,H,W) in [0,1] -> the same.

        Args:
            noise: (B,C,H,W) standard normal; None: from torch's global generator.
        """
        drawn = torch.randn_like(images) if noise is None else noise
        length = torch.linalg.vector_norm(drawn.flatten(1), dim=1).clamp(min=torch.finfo(drawn.dtype).tiny)
        scale: Tensor = self.eps / length
        return (images + drawn * scale.view(-1, 1, 1, 1)).clamp(0.0, 1.0)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class GaussianBlur(nn.Module):
    """A Gaussian blur with mirrored borders.

    Args:
        sigma: standard deviation in pixels, above 0; the paper takes 1.
        kernel: pixels a side, odd; it is cut where an image is too small to be mirrored so far.

    Raises:
        UserError: a value out of range.
    """

    randomised = False

    def __init__(self, *, sigma: float = 1.0, kernel: int = 11) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise UserError(f"sigma of the blur is {sigma}: it is a width in pixels, above 0, such as 1.0.")
        if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise UserError(f"kernel of the blur is {kernel!r}: expected an odd whole number of pixels, such as 11.")
        self.sigma, self.kernel = float(sigma), kernel

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> the same."""
        return self._along(self._along(images, 2), 3)  # separable: 2k products a pixel in place of k^2

    def _along(self, images: Tensor, dimension: int) -> Tensor:
        reach = min(self.kernel // 2, images.shape[dimension] - 1)
        places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = (-0.5 * (places / self.sigma) ** 2).exp()
        weights = weights / weights.sum()
        upright = dimension == 2
        shape, border = ((-1, 1), (0, 0, reach, reach)) if upright else ((1, -1), (reach, reach, 0, 0))
        channels = images.shape[1]
        stencil = weights.view(1, 1, *shape).expand(channels, -1, -1, -1)
        return F.conv2d(F.pad(images, border, mode="reflect"), stencil, groups=channels)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, kernel={self.kernel}"


STEPS: Mapping[str, type[nn.Module]] = {"noise": NormNoise, "blur": GaussianBlur, "jpeg": JPEG}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"eps": 4.0},
    "blur": {"sigma": 1.0, "kernel": 11},
    "jpeg": {"quality": 75},
}


def preprocessing(spec: str | Mapping[str, Any] | None) -> nn.Module | None:
    """The step that ``purifier.preprocess`` names, or None for none.

    Args:
        spec: ``none``, ``noise``, ``blur`` or ``jpeg``; or, with settings, ``{name: noise, eps: 2.0}``. Without them:
            noise of norm 4.0, as in the paper for images of 256 px, blur of sigma 1, JPEG of quality 75.

    Raises:
        UserError: an unknown name or key, or an impossible value.
    """
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = str(settings.pop("name", None) or "none")
    if name == "none":
        if settings:
            raise UserError(f"purifier.preprocess has {', '.join(settings)} but no name: add name=noise or another.")
        return None
    choices = ("none", *STEPS)
    if name not in STEPS:
        raise UserError(f"purifier.preprocess is {name!r}{did_you_mean(name, choices)} (choices: {', '.join(choices)})")
    known = _DEFAULTS[name]
    if unknown := [str(key) for key in settings if key not in known]:
        raise UserError(
            f"purifier.preprocess {name} has no key {unknown[0]!r}{did_you_mean(unknown[0], tuple(known))} "
            f"(it has {', '.join(known)})"
        )
    return STEPS[name](**{**known, **settings})
