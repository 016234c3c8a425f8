"""Lean image and text towers of a small CLIP (Radford et al. 2021, section 2.4), made for few tokens on a CPU.

Pre-norm transformers with one matrix for queries, keys and values. The output is one token a row, so
the last block computes query, output and MLP for that token only: the same function for less work.

Shapes: B batch, C channels, D embedding, N patches, T tokens, W width of a tower.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm transformer block; with ``pool`` it returns the pooled token of each row only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, *, causal: bool, pool: Tensor | None = None) -> Tensor:
        """(B,T,W) -> (B,T,W), or (B,1,W) with ``pool`` (B,), the position that is read off."""
        hidden = self.norm_attention(x)
        if pool is None:
            query, key, value = self._split(self.qkv(hidden), 3)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        else:
            rows, width = torch.arange(len(x), device=x.device), x.shape[-1]
            x = x[rows, pool].unsqueeze(1)
            weight, bias = self.qkv.weight, self.qkv.bias
            (query,) = self._split(F.linear(hidden[rows, pool].unsqueeze(1), weight[:width], bias[:width]), 1)
            key, value = self._split(F.linear(hidden, weight[width:], bias[width:]), 2)
            seen = _up_to(pool, hidden.shape[1]) if causal else None
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        mlp: Tensor = self.contract(F.gelu(self.expand(self.norm_mlp(x))))
        return x + mlp

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B,T,parts*W) -> parts of (B,heads,T,W/heads)."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()


def _up_to(pool: Tensor, tokens: int) -> Tensor:
    """Mask (B,1,1,T), True for the positions up to ``pool`` (B,)."""
    return (torch.arange(tokens, device=pool.device) <= pool[:, None])[:, None, None]


class ImageTower(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) with a class token: (B,3,size,size) normalised -> (B,D)."""

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, layers: int, heads: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(3 * patch_size**2, width)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros((image_size // patch_size) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self._before_last(images)
        first = torch.zeros(len(x), dtype=torch.long, device=x.device)
        pooled: Tensor = self.projection(self.norm(self.blocks[-1](x, causal=False, pool=first)))
        return pooled.squeeze(1)

    def tokens(self, images: Tensor) -> Tensor:
        """(B,3,size,size) normalised -> (B,1+N,D), the class token, which `forward` gives, and the N patches."""
        tokens: Tensor = self.projection(self.norm(self.blocks[-1](self._before_last(images), causal=False)))
        return tokens

    def _before_last(self, images: Tensor) -> Tensor:
        """(B,1+N,W), the input of the last block."""
        size = self.patch_size
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
        x: Tensor = self.patches(cells.flatten(3).flatten(1, 2))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions
        for block in self.blocks[:-1]:
            x = block(x, causal=False)
        return x


class TextTower(nn.Module):
    """Causal transformer read off at the end-of-text token, which has the highest id: (B,T) -> (B,D)."""

    def __init__(
        self, *, tokens: int, context_length: int, width: int, layers: int, heads: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.zeros(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        x = self.token_embedding(tokens) if embeddings is None else embeddings
        x = x + self.positions[: tokens.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, causal=True)
        pooled: Tensor = self.projection(self.norm(self.blocks[-1](x, causal=True, pool=tokens.argmax(-1))))
        return pooled.squeeze(1)


class LeanCLIP(nn.Module):
    """Both towers and the learnt temperature, with the methods of an open_clip network."""

    def __init__(self, visual: ImageTower, text: TextTower) -> None:
        super().__init__()
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,3,size,size) normalised -> (B,D), not normalised."""
        return self.visual(images)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """(B,T) -> (B,D), not normalised; ``embeddings`` (B,T,W) stands for the token look-up."""
        return self.text(tokens, embeddings)  # type: ignore[no-any-return]


def initialise(network: LeanCLIP, generator: torch.Generator) -> None:
    """Weights drawn from ``generator``: the scheme of CLIP, residual branches scaled down by the depth."""
    for tower in (network.visual, network.text):
        branch = (2 * len(tower.blocks)) ** -0.5
        for name, weight in tower.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif "norm" not in name:
                std = _deviation(name, weight) * (branch if name.endswith(("out.weight", "contract.weight")) else 1.0)
                nn.init.normal_(weight, std=std, generator=generator)


def _deviation(name: str, weight: Tensor) -> float:
    if name == "token_embedding.weight":
        return 0.02
    if name in ("positions", "class_token"):
        return 0.01
    return float(weight.shape[-1] ** -0.5)
