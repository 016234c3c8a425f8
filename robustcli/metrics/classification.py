"""Ranks of the label among the classes of a classifier.

Shapes: B images, Y classes.
"""

import torch
from torch import Tensor


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) long: rank of the label among the classes (B,Y); equal logits go to the class that stands first."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device)[None, :] < labels[:, None]
    return 1 + ((logits > own) | ((logits == own) & earlier)).sum(1).cpu()
