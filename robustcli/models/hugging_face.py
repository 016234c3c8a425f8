"""Names of Hugging Face's ``CLIPModel`` in those of OpenAI's CLIP, which open_clip has, of the same network.

Queries, keys and values stand in one matrix there, and the projections are transposed.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MARK = "vision_model.embeddings.class_embedding"
_TOWERS = {"vision_model.": "visual.", "text_model.": ""}
_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.": "conv1.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.": "token_embedding.",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ``CLIPModel`` under OpenAI's names; any others as they are."""
    if MARK not in state:
        return dict(state)
    renamed = {}
    for name, value in state.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            renamed["visual.proj" if name.startswith("visual") else "text_projection"] = value.T.contiguous()
        elif match := _QUERY.fullmatch(name):
            parts = [
                state[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] for part in "qkv" if _has(state, match, part)
            ]
            renamed[_renamed(f"{match[1]}.attn.in_proj_{match[2]}")] = torch.cat(parts)
        elif not re.search(r"\.self_attn\.[kv]_proj\.|position_ids$", name):
            renamed[_renamed(name)] = value
    return renamed


def _has(state: Mapping[str, Tensor], match: re.Match[str], part: str) -> bool:
    return f"{match[1]}.self_attn.{part}_proj.{match[2]}" in state  # a damaged file fails by its shape, with a sentence


def _renamed(name: str) -> str:
    for old, new in _TOWERS.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _PARTS.items():
        name = name.replace(old, new)
    return name
