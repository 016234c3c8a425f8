"""Tiny folders of the transformers library, made by it: configuration, random weights, tokenizer, preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ("a", "the", "red", "blue", "circle", "square", "small", "zebra")
CAPTIONS = ["a red circle", "The small BLUE square", "zebra"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_SIZES, "image_size": 32, "patch_size": 16}


def _clip(library: Any, folder: Path) -> Any:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = library.CLIPTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    text = {**_SIZES, "vocab_size": len(pieces), "max_position_embeddings": 24, **ids}
    config = library.CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=16)
    return library.CLIPModel(config)


def _siglip(library: Any, folder: Path) -> Any:
    made = __import__("tokenizers")
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = made.Tokenizer(made.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = made.normalizers.Lowercase()
    words.pre_tokenizer = made.pre_tokenizers.Whitespace()
    words.post_processor = made.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    library.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=12, **special).save_pretrained(folder)
    text = {**_SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 12, "pad_token_id": 1}
    text |= {"bos_token_id": None, "eos_token_id": 1, "projection_size": 32}
    return library.SiglipModel(library.SiglipConfig(vision_config=_VISION, text_config=text))


def _altclip(library: Any, folder: Path) -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [(piece, -float(number)) for number, piece in enumerate([*pieces, "<mask>"])]
    tokenizer = library.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=512)
    tokenizer.save_pretrained(folder)
    text = {**_SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 22, "project_dim": 24}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return library.AltCLIPModel(library.AltCLIPConfig(vision_config=_VISION, text_config=text, projection_dim=16))


def _chinese_clip(library: Any, folder: Path) -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "红", "圆"]
    tokenizer = library.BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    tokenizer.save_pretrained(folder)
    text = {**_SIZES, "vocab_size": len(pieces), "max_position_embeddings": 20}
    config = library.ChineseCLIPConfig(vision_config=_VISION, text_config=text, projection_dim=16)
    return library.ChineseCLIPModel(config)


KINDS: dict[str, Callable[[Any, Path], Any]] = {
    "clip": _clip,
    "siglip": _siglip,
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
}


def make_folder(kind: str, folder: Path, *, weights: bool = True, seed: int = 0) -> Any:
    """Write the folder of a tiny model of ``kind``; the library's model of it, in eval mode."""
    library = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = KINDS[kind](library, folder).eval()
        with torch.no_grad():
            for weight in model.parameters():  # biases and norms of new networks are all alike
                weight.add_(0.05 * torch.randn_like(weight))
            model.logit_scale.fill_(4.8 if kind == "siglip" else 2.0)
    if weights:
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
    crops = kind in ("clip", "altclip")
    size = {"shortest_edge": 32} if crops else {"height": 32, "width": 32}
    processor = library.CLIPImageProcessor if crops else library.SiglipImageProcessor
    options = {"crop_size": {"height": 32, "width": 32}} if crops else {}
    processor(size=size, image_mean=MEAN, image_std=STD, resample=3, **options).save_pretrained(folder)
    return model
