"""Builder of trainable generators, from a config node."""

import torch
from omegaconf import DictConfig

from robustcli.builders.hook import construct
from robustcli.data import ImageClassData
from robustcli.models.generators import NVAE, Trained
from robustcli.utils.errors import UserError


def build_generator(config: DictConfig, checkpoint: str | None, data: ImageClassData, *, seed: int) -> NVAE | Trained:
    """The generator of ``generator=...`` with trainable weights, those of ``checkpoint`` if one is given.

    Raises:
        UserError: its resolution (C, H, W) is not that of the images of ``data``.
    """
    chosen = {} if checkpoint is None else {"checkpoint": checkpoint}
    generator: NVAE | Trained = construct(config, node="generator", **chosen, seed=seed)
    shape = tuple(data.images(torch.tensor([0])).shape[1:])
    if shape != generator.resolution:
        raise UserError(
            f"generator.resolution is {list(generator.resolution)}, but images of dataset {data.name} are "
            f"{list(shape)}: set generator.resolution={str(list(shape)).replace(' ', '')}, or the size of the data set."
        )
    return generator.requires_grad_(True)
