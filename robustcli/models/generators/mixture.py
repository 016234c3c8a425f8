"""Discretised mixture of logistics, the output of NVAE's decoder (Salimans et al., PixelCNN++, arXiv 1701.05517).

Shapes: B batch, C channels (1 or 3), H height, W width, M mixtures.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_LOG_SCALE = -7.0  # as in PixelCNN++: a scale of 0.0009, where one of 256 grey levels is 0.0078 wide
_LEAST_MASS = 1e-12  # under the log; the branch is masked there, but its gradient must not be NaN
_BITS_8 = 256


def parameter_count(channels: int, mixtures: int) -> int:
    """Number of channels that `LogisticMixture` reads: weights, and means, log scales and coefficients of each."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


class LogisticMixture:
    """Distribution over images in [-1,1], independent over places; green is conditioned on red, blue on both.

    Args:
        parameters: (B, M (1 + 2C + coefficients), H, W); the first M channels are the weights' logits, the others
            stand mixture by mixture: C means, C log scales, coefficients.
        channels: C.
        levels: how many grey levels a channel has; 256 for pictures of 8 bits.
    """

    def __init__(self, parameters: Tensor, *, channels: int = 3, levels: int = _BITS_8) -> None:
        each = 2 * channels + channels * (channels - 1) // 2
        mixtures = parameters.shape[1] // (1 + each)
        self.channels, self.levels = channels, levels
        parameters = parameters.contiguous()  # read channel by channel: each is a block of memory then
        self.logits = parameters[:, :mixtures]
        rest = parameters[:, mixtures:].reshape(len(parameters), mixtures, each, *parameters.shape[2:])
        self.means = rest[:, :, :channels]
        self._log_scales = rest[:, :, channels : 2 * channels]
        self.coefficients = torch.tanh(rest[:, :, 2 * channels :])

    @property
    def log_scales(self) -> Tensor:
        """(B,M,C,H,W), -7 at least."""
        return self._log_scales.clamp(min=_LEAST_LOG_SCALE)

    def mean(self) -> Tensor:
        """(B,C,H,W) in [-1,1]: channel by channel, each from the means and coefficients averaged over mixtures."""
        share = torch.softmax(self.logits, dim=1).unsqueeze(2)
        means, k = (self.means * share).sum(1), (self.coefficients * share).sum(1)
        return self._chained(means, k)

    def sample(self, pick: Tensor, place: Tensor) -> Tensor:
        """A draw (B,C,H,W) in [-1,1], from uniform draws.

        Args:
            pick: (B,M,H,W) in (0,1), of the mixture (by Gumbel's trick).
            place: (B,C,H,W) in (0,1), of the logistic.
        """
        chosen = (self.logits - torch.log(-torch.log(pick))).argmax(1)
        mask = F.one_hot(chosen, pick.shape[1]).movedim(-1, 1).unsqueeze(2)
        means, log_scales, k = ((value * mask).sum(1) for value in (self.means, self.log_scales, self.coefficients))
        return self._chained(means + log_scales.exp() * (torch.log(place) - torch.log1p(-place)), k)

    def log_prob(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [-1,1] -> (B,H,W), the log probability (nats) of the level that each pixel has."""
        centred, log_scales = images.unsqueeze(1) - self._means_given(images), self.log_scales
        half = 1.0 / (self.levels - 1)
        # The mass of the level around x is CDF(x + half) - CDF(x - half) of each logistic (PixelCNN++, equation 2).
        rate = torch.exp(-log_scales)
        above, below, middle = rate * (centred + half), rate * (centred - half), rate * centred
        mass = torch.sigmoid(above) - torch.sigmoid(below)
        # Where the mass of a level is lost in rounding, the density at its middle times its width stands for it.
        density = middle - log_scales - 2.0 * F.softplus(middle) + math.log(2.0 * half)
        inner = torch.where(mass > 1e-5, mass.clamp(min=_LEAST_MASS).log(), density)
        # The edges take the whole tail: black all mass below its upper bound, white all above its lower one. The
        # upper threshold, as in NVAE's code, takes in the last two of 256 levels (254 is 0.992).
        pixels = images.unsqueeze(1)
        darkest, lightest = above - F.softplus(above), -F.softplus(below)
        log_prob = torch.where(pixels < -0.999, darkest, torch.where(pixels > 0.99, lightest, inner))
        # Channels of a pixel share one mixture component: the sum over channels comes before that over components.
        total: Tensor = torch.logsumexp(log_prob.sum(2) + torch.log_softmax(self.logits, dim=1), dim=1)
        return total

    def _chained(self, values: Tensor, k: Tensor) -> Tensor:
        """(B,C,H,W) within [-1,1]: green shifted by the red of the output, blue by both."""
        first = values[:, 0].clamp(-1, 1)
        if self.channels == 1:
            return first.unsqueeze(1)
        second = (values[:, 1] + k[:, 0] * first).clamp(-1, 1)
        third = (values[:, 2] + k[:, 1] * first + k[:, 2] * second).clamp(-1, 1)
        return torch.stack([first, second, third], dim=1)

    def _means_given(self, images: Tensor) -> Tensor:
        """(B,M,C,H,W): the means of green and blue shifted by the channels before them, as ``images`` have them."""
        if self.channels == 1:
            return self.means
        red, green = images[:, None, 0], images[:, None, 1]
        k = self.coefficients
        second = self.means[:, :, 1] + k[:, :, 0] * red
        third = self.means[:, :, 2] + k[:, :, 1] * red + k[:, :, 2] * green
        return torch.stack([self.means[:, :, 0], second, third], dim=2)
