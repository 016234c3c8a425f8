"""Harmless moves of images, which a robust model survives and a model that knows the very images does not.

Shapes: B images, N images of the sample, C channels, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # pixels, down and to the right
_PARTNERS = 3  # other images of the class that are mixed in


def moves(images: Tensor, labels: Tensor, sample: Tensor, sample_labels: Tensor) -> list[Tensor]:
    """Candidates (B,C,H,W) in [0,1]: shifted by a pixel, and the mean with other images of the class.

    Args:
        images: (B,C,H,W) in [0,1].
        labels: (B,) long.
        sample, sample_labels: (N,C,H,W) and (N,), where other images of the classes are taken from.
    """
    shifted = [_shifted(images, *shift) for shift in _SHIFTS]
    return [*shifted, *_mixed(images, labels, sample, sample_labels)]


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shifted by a pixel; the edge is repeated."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _mixed(images: Tensor, labels: Tensor, sample: Tensor, sample_labels: Tensor) -> list[Tensor]:
    """Means with the nearest other images of the class; images of a class of one stay as they are."""
    distances = torch.cdist(images.flatten(1), sample.flatten(1))
    distances[(labels[:, None] != sample_labels[None]) | (distances == 0)] = torch.inf
    nearest = distances.topk(min(_PARTNERS, len(sample)), largest=False)
    mixed = []
    for distance, partner in zip(nearest.values.T, nearest.indices.T, strict=True):
        mean = (images + sample[partner]) / 2
        mixed.append(torch.where(distance.isinf().view(-1, 1, 1, 1), _shifted(images, 0, 1), mean))
    return mixed
