"""``tiny``: a CLIP of 1.3 million parameters for the embedded scenes, or for real captions from scratch.

Shapes: D embedding, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.models.assembly import check_sizes, settings_and_weights
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.registry import MODELS
from robustcli.models.tokenizer import WordTokenizer
from robustcli.models.towers import ImageTower, LeanCLIP, TextTower, initialise
from robustcli.models.weights import Checkpoint, Weights, assign, check_shapes
from robustcli.utils.errors import UserError

_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def tiny(
    vocabulary: Sequence[str] | None = None,
    *,
    image_size: int = 32,
    patch_size: int = 8,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    text_width: int = 128,
    text_layers: int = 2,
    text_heads: int = 4,
    embed_dim: int = 128,
    context_length: int = 26,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> DualEncoder:
    """A small dual encoder with a word vocabulary of its own.

    Args:
        vocabulary: its words (``build_vocabulary`` makes them from captions); all others are one unknown word.
        image_size, patch_size: pixels; 16 is the patch for 64 pixels.
        width, layers, heads: of the image tower; ``text_``: of the text tower.
        embed_dim: D.
        context_length: T, with the start and the end token.
        seed: of the random weights; the global generator is left alone.
        checkpoint: a file of ``save_weights``, or ``shipped``. Vocabulary and sizes are then the file's.

    Raises:
        UserError: sizes that do not fit together, no words, or a checkpoint of another model.
    """
    sizes = {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "layers": layers,
        "heads": heads,
        "text_width": text_width,
        "text_layers": text_layers,
        "text_heads": text_heads,
        "embed_dim": embed_dim,
        "context_length": context_length,
    }
    sizes, weights = settings_and_weights(tiny, sizes, checkpoint, shipped=MODELS["tiny"].shipped["scenes"])
    if weights is not None:
        vocabulary = weights.description.get("vocabulary", vocabulary)
    if not vocabulary:
        raise UserError("model.vocabulary is empty: give the words of the captions, or a checkpoint that holds them")
    model = _build(vocabulary, sizes, seed, weights)
    if weights is not None:
        assign(model, weights)
    return model


def _build(vocabulary: Sequence[str], sizes: Mapping[str, int], seed: int, weights: Weights | None) -> DualEncoder:
    _check(sizes)
    tokenizer = WordTokenizer(vocabulary, sizes["context_length"])
    if weights is not None:
        check_shapes(weights, lambda: _network(len(tokenizer), sizes))
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced at once
        network = _network(len(tokenizer), sizes)
    initialise(network, torch.Generator().manual_seed(seed))
    description: dict[str, Any] = {"factory": "tiny", **sizes, "vocabulary": list(tokenizer.words)}
    return DualEncoder(
        network, tokenizer, image_size=sizes["image_size"], mean=_MEAN, std=_STD, description=description
    )


def _network(tokens: int, sizes: Mapping[str, int]) -> LeanCLIP:
    visual = ImageTower(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        embed_dim=sizes["embed_dim"],
    )
    text = TextTower(
        tokens=tokens,
        context_length=sizes["context_length"],
        width=sizes["text_width"],
        layers=sizes["text_layers"],
        heads=sizes["text_heads"],
        embed_dim=sizes["embed_dim"],
    )
    return LeanCLIP(visual, text)


def _check(sizes: Mapping[str, int]) -> None:
    """`UserError` for sizes that do not fit together, before any weight is made."""
    for part, whole in (("patch_size", "image_size"), ("heads", "width"), ("text_heads", "text_width")):
        if sizes[part] < 1 or sizes[whole] % sizes[part]:
            raise UserError(f"model.{part} is {sizes[part]}, but it must divide model.{whole}, which is {sizes[whole]}")
    check_sizes(1000, layers=sizes["layers"], text_layers=sizes["text_layers"])
    for name in ("layers", "text_layers", "embed_dim"):
        if sizes[name] < 1:
            raise UserError(f"model.{name} is {sizes[name]}: expected at least 1")
    if sizes["context_length"] < 3:
        raise UserError(f"model.context_length is {sizes['context_length']}: expected at least 3 (start, a word, end)")
