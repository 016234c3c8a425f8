"""Ranks of the label among the classes of a classifier.

Shapes: B images, Y classes.
"""

import torch
from torch import Tensor


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) long on the CPU: rank (1 is best) of the label among the classes; of equal logits the first class wins.

    Args:
        logits: (B,Y), without NaN, which compares as false and would rank first.
        labels: (B,) long.
    """
    label_logits = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device)[None, :] < labels[:, None]
    return 1 + ((logits > label_logits) | ((logits == label_logits) & earlier)).sum(1).cpu()
