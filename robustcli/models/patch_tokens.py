"""Patch embeddings of image towers that are vision transformers.

Shapes: B batch, D embedding, N patches.
"""

from typing import Any

from torch import Tensor, nn

from robustcli.models.towers import ImageTower
from robustcli.utils.errors import UserError


def read_patches(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images -> embeddings (B,D), and the last tokens of the patches in the same space (B,N,D), row by row.

    Both from one pass. The tokens of the last block go through the norm and the projection of the class token
    (Yu et al. 2024, TGA-ZSR).

    Raises:
        UserError: see `check_patches`.
    """
    check_patches(network)
    visual = network.visual
    if isinstance(visual, ImageTower):
        tokens = visual.tokens(images)
        return tokens[:, 0], tokens[:, 1:]
    before, visual.output_tokens = visual.output_tokens, True
    try:
        pooled, tokens = visual(images)
    finally:
        visual.output_tokens = before
    return pooled, tokens @ visual.proj


def check_patches(network: nn.Module) -> None:
    """Refuse a network whose image tower is not `ImageTower` or open_clip's transformer read off at its class token.

    Raises:
        UserError: it is a ResNet, pools its tokens or is unknown.
    """
    visual: Any = getattr(network, "visual", None)
    if isinstance(visual, ImageTower):
        return
    kind = type(visual)
    transformer = kind.__module__.startswith("open_clip.") and kind.__name__ == "VisionTransformer"
    if (
        transformer
        and (visual.attn_pool, visual.pool_type) == (None, "tok")
        and not visual.final_ln_after_pool
        and visual.proj is not None
    ):
        return
    raise UserError(
        f"the image tower {kind.__name__} has no patch tokens beside a class token, which the objective reads: choose "
        "model=tiny, or a vision transformer of open_clip such as model.architecture=ViT-B-32."
    )
