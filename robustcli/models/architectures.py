"""Names of open_clip's architectures whose sizes are those of a file of weights.

A transformer of its own kind is told by its widths, depths, patch, grid, context and vocabulary, a ResNet by its depths
and width; towers of timm and of Hugging Face are not.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from robustcli.models.layouts import State, canonical

# Defaults of open_clip's CLIPVisionCfg and CLIPTextCfg.
_VISION = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12}
_ELSEWHERE = ("timm_model_name", "hf_model_name")

Sizes = dict[str, Any]


def architectures(library: Any, state: State) -> list[str]:
    """Names of the architectures of ``library``, open_clip, that have the sizes of ``state``; shortest first."""
    found = sizes(canonical(state))
    if not found:
        return []
    known = {name: _configured(library.get_model_config(name)) for name in library.list_models()}
    fitting = [name for name, each in known.items() if each and all(each.get(key) == found[key] for key in found)]
    return sorted(fitting, key=lambda name: (len(name), name))


def sizes(state: State) -> Sizes:
    """Sizes of the towers that ``state`` has under open_clip's names; empty for another kind of tower."""
    shape = {name: tuple(value.shape) for name, value in state.items()}
    if "visual.conv1.weight" not in shape or "visual.positional_embedding" not in shape | _pooled(shape):
        return {}
    width, _, _, patch = shape["visual.conv1.weight"]
    if "visual.layer1.0.conv1.weight" in shape:
        side = math.isqrt(shape["visual.attnpool.positional_embedding"][0] - 1)
        depths = [_depth(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
        found: Sizes = {"image_size": 32 * side, "width": 2 * width, "layers": depths}
        found["embed_dim"] = shape.get("visual.attnpool.c_proj.weight", (None,))[0]
    else:
        side = math.isqrt(shape["visual.positional_embedding"][0] - 1)
        depth = _depth(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        found = {"image_size": side * patch, "patch_size": patch, "width": width, "layers": depth}
        found["embed_dim"] = shape.get("visual.proj", (0, None))[1]
    if "token_embedding.weight" in shape and "positional_embedding" in shape:
        vocabulary, width = shape["token_embedding.weight"]
        depth = _depth(state, r"transformer\.resblocks\.(\d+)\.")
        text = {"vocab_size": vocabulary, "width": width, "layers": depth}
        text["context_length"] = shape["positional_embedding"][0]
        found |= {f"text.{key}": value for key, value in text.items()}
    return found


def _pooled(shape: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The position table of a ResNet's pooling, under the name that a transformer has for its own."""
    name = "visual.attnpool.positional_embedding"
    return {"visual.positional_embedding": shape[name]} if name in shape else {}


def _depth(state: State, pattern: str) -> int:
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, state) if match]
    return max(numbers, default=-1) + 1


def _configured(config: Mapping[str, Any]) -> Sizes:
    """The sizes of a configuration; empty for towers of another library or of another kind."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config or any(tower.get(key) for tower in (vision, text) for key in _ELSEWHERE):
        return {}
    found = {key: vision.get(key, default) for key, default in _VISION.items()}
    texts = {f"text.{key}": text.get(key, default) for key, default in _TEXT.items()}
    return {"embed_dim": config["embed_dim"], **found, **texts}
