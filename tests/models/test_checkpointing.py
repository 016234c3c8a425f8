"""Activation checkpointing: the same gradients from fewer kept activations."""

from typing import Any

import pytest
import torch
from torch import nn

from robustcli.data.scenes import vocabulary
from robustcli.models import small_cnn, tiny
from robustcli.models.checkpointing import check_blocks, checkpointed
from robustcli.utils.errors import UserError

from ..conftest import SMALL_MODEL

OPEN_CLIP: Any = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2},
}


def kept(network: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Numbers that a graph keeps, and the gradients of all weights and of the images."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    network.zero_grad()
    images = images.clone().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network.encode_image(images).square().sum() + network.encode_text(tokens).square().sum()
    count = sum(sizes.values())
    loss.backward()
    return count, [images.grad, *(weight.grad for weight in network.parameters() if weight.grad is not None)]


def open_clip() -> nn.Module:
    from open_clip import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIP(**OPEN_CLIP).train()


def ours() -> nn.Module:
    return tiny(vocabulary(), seed=1, **SMALL_MODEL).network


@pytest.mark.parametrize("make", [ours, open_clip])
def test_gradients_are_the_same_and_less_is_kept(make: Any) -> None:
    network = make()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(1, 60, (4, 8), generator=torch.Generator().manual_seed(1))
    plain, expected = kept(network, images, tokens)
    with checkpointed(network):
        few, found = kept(network, images, tokens)
    again, _ = kept(network, images, tokens)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert few < 0.7 * plain and again == plain, "afterwards all is as before"


def test_a_network_without_blocks_is_told() -> None:
    with pytest.raises(UserError, match=r"trainer\.checkpointing=true .* has none: leave it out, or lower"):
        check_blocks(small_cnn(classes=2, channels=1, widths=[4]).network)
    check_blocks(tiny(vocabulary(), seed=1, **SMALL_MODEL).network)
