"""Random draws of an attack, from a generator of each sample's own, so that its result does not depend on its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.utils.seeding import generator


def sample_noise(shape: Sequence[int], sample_ids: Sequence[int], *parts: int | str, normal: bool = False) -> Tensor:
    """(B, *shape): uniform in [0,1) or standard normal, each row from a generator named by ``parts`` and its id."""
    draw = torch.randn if normal else torch.rand
    rows = [draw(tuple(shape), generator=generator(*parts, sample_id)) for sample_id in sample_ids]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
