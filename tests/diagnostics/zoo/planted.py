"""Planted defences of the zoo: networks that are no more robust than the bare one, but look so to a gradient attack.

Most are from the case studies of Athalye et al. 2018 ("Obfuscated gradients give a false sense of security"), Tramer et
al. 2020 ("On adaptive attacks to adversarial example defenses") and Carlini et al. 2019 ("On evaluating adversarial
robustness").

Shapes: B batch, C channels, H height, W width, Y classes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import BPDA


class WinnersTakeAll(nn.Module):
    """k-winners-take-all in place of a ReLU: the largest ``share`` of the activations of an image stay, the others are
    0 (Xiao et al. 2020). The network is discontinuous almost everywhere, so its gradient holds for no step of any size.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        lowest = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= lowest, flat, torch.zeros_like(flat)).view_as(x)


class Defence(nn.Module):
    """A network behind a defence."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        raise NotImplementedError


class InputStep(Defence):
    """A network behind a step over its images."""

    def __init__(self, network: nn.Module, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network)
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.step(images))


class OutputStep(Defence):
    """A network in front of a step over its logits."""

    def __init__(self, network: nn.Module, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network)
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        return self.step(self.network(images))


class RestoringDetector(Defence):
    """A detector that answers with the median-filtered image where that changes the class."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        with torch.no_grad():
            restored = self.network(quantised(median(images), 7))
        detected = logits.argmax(1) != restored.argmax(1)
        return torch.where(detected[:, None], restored, logits)


class RememberingDetector(Defence):
    """A detector that knows the test images: within a radius of one it answers for that one."""

    def __init__(self, network: nn.Module, images: Tensor, radius: float) -> None:
        super().__init__(network)
        self.register_buffer("memory", images.clone())
        self.radius = radius

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        with torch.no_grad():
            distances = (images[:, None] - self.memory[None]).abs().flatten(2).amax(2)
            nearest = distances.min(1)
            remembered = self.network(self.memory[nearest.indices])
        return torch.where((nearest.values <= self.radius)[:, None], logits + (remembered - logits).detach(), logits)


class FaintDetector(RememberingDetector):
    """`RememberingDetector` with a thousandth of the logits of the image, so that its gradient is small and true."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach() + 1e-3 * self.network(images)


class ThresholdedDetector(Defence):
    """A detector of rough images, which are blurred in a step without a gradient."""

    def __init__(self, network: nn.Module, threshold: float) -> None:
        super().__init__(network)
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            rough = (images - median(images)).abs().flatten(1).mean(1) > self.threshold
            smooth = median(images)
        return self.network(torch.where(rough.view(-1, 1, 1, 1), smooth, images))


class CountingDefence(Defence):
    """A network that lets its gradient go after as many passes as an honest user needs."""

    def __init__(self, network: nn.Module, honest: int = 4) -> None:
        super().__init__(network)
        self.honest, self.passes = honest, 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits = self.network(images)
        if self.passes <= self.honest:
            return logits
        return logits.detach() - (logits - logits.detach())


class TestTimeBatchNorm(Defence):
    """Batch normalisation by the moments of the batch at hand, so that an image hides behind the others."""

    def forward(self, images: Tensor) -> Tensor:
        moments = [(norm, norm.momentum) for norm in self.network.modules() if isinstance(norm, nn.BatchNorm2d)]
        for norm, _ in moments:
            norm.training, norm.momentum = True, 0.0
        try:
            return self.network(images)
        finally:
            for norm, momentum in moments:
                norm.training, norm.momentum = False, momentum


def quantised(images: Tensor, levels: int) -> Tensor:
    return (images * levels).round() / levels


def median(images: Tensor) -> Tensor:
    """Median of 3 x 3 pixels."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(4).median(4).values


def rippled(images: Tensor) -> Tensor:
    """The image with a ripple of a hundredth, whose slope is five times that of the image."""
    return (images + 0.01 * torch.sin(500 * images)).clamp(0, 1)


def pulsed(images: Tensor) -> Tensor:
    """A soft staircase: the gradient is a narrow pulse at each step, and nothing between them."""
    scaled = 12 * images
    return (scaled.floor() + torch.sigmoid(60 * (scaled - scaled.floor() - 0.5))) / 12


def hashed_noise(images: Tensor) -> Tensor:
    """Noise that looks random, but is a function of the pixel and its position: two passes agree."""
    positions = torch.arange(images[0].numel(), device=images.device).view_as(images[0])
    with torch.no_grad():
        hashed = torch.sin(12345.678 * images + 78.233 * positions) * 43758.5453
        noise = 0.4 * (hashed - hashed.floor() - 0.5)
    return (images + noise).clamp(0, 1)


def drawn_noise(images: Tensor) -> Tensor:
    return (images + 0.15 * torch.randn_like(images)).clamp(0, 1)


def dropped(images: Tensor) -> Tensor:
    return 0.75 * F.dropout(images, 0.25, training=True)


def cosine_quantised(images: Tensor) -> Tensor:
    """Coefficients of the cosine transform over the whole image rounded to a grid, as a JPEG does block by block."""
    transform = _cosines(images.shape[-1]).to(images)
    coefficients = transform @ images @ transform.T
    return (transform.T @ ((coefficients / 0.25).round() * 0.25) @ transform).clamp(0, 1)


def _cosines(size: int) -> Tensor:
    """Orthonormal cosine transform (size,size)."""
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi * rows * (2 * columns + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def resized(images: Tensor) -> Tensor:
    """Twice as large by nearest neighbours, through bytes, and back: no gradient."""
    with torch.no_grad():
        large = F.interpolate(quantised(images, 7), scale_factor=2.0, mode="nearest")
        small = F.interpolate(large, size=images.shape[-2:], mode="area")
    return small + 0 * images


def flipped_gradient(images: Tensor) -> Tensor:
    """The images, with a gradient that points the other way."""
    return BPDA(lambda x: x, lambda x: 1 - x)(images)


class _NoiseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.abs().mean() * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))


def noise_gradient(images: Tensor) -> Tensor:
    """The images, with noise for a gradient."""
    noisy: Tensor = _NoiseBackward.apply(images)
    return noisy


def dead_relu(images: Tensor) -> Tensor:
    """The images through a ReLU that no pixel passes, and beside it without a gradient."""
    return images.detach() + F.relu(images - 2)


def cut(logits: Tensor) -> Tensor:
    """Logits without a graph, as of a library without gradients."""
    return logits.detach()


def double_log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities that are sharpened until they saturate, and normalised again."""
    return F.log_softmax(60 * F.log_softmax(logits, dim=1), dim=1)


def clipped(logits: Tensor) -> Tensor:
    """Logits within 1 of each other's mean, where nearly all are at the limit."""
    return logits.clamp(-1, 1) + 1e-6 * logits.detach()


def huge(logits: Tensor) -> Tensor:
    return 1e4 * logits


def rounded(logits: Tensor) -> Tensor:
    """Logits of whole numbers; ties are broken by a trace of the logits without a gradient."""
    return logits.round() + 1e-3 * logits.detach()
