"""Networks of the transformers library with the methods of an open_clip one, and their tokenizers.

Shapes: B batch, C channels, S side, D embedding, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale", "logit_bias")
_TABLES = ("token_embedding", "word_embeddings")


class HuggingFaceTowers(nn.Module):
    """The parts of a ``CLIPModel``, ``SiglipModel``, ``AltCLIPModel`` or ``ChineseCLIPModel`` under their own names.

    Args:
        model: of the library.
        padding: id of the padding token of a text tower that masks it; None for CLIP's, which looks back alone, and
            for SigLIP's, which reads padding as it does any token.
    """

    vision_model: nn.Module
    text_model: nn.Module

    def __init__(self, model: nn.Module, padding: int | None) -> None:
        super().__init__()
        for name in _PARTS:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.padding = padding
        config: Any = model.config
        self.end = config.text_config.eos_token_id if config.model_type == "clip" else None

    @property
    def visual(self) -> nn.Module:
        """The image tower without its projection."""
        return self.vision_model

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,S,S) normalised -> (B,D), not normalised."""
        pooled = self.vision_model(pixel_values=images).pooler_output
        return self._projected("visual_projection", pooled)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B,T) -> (B,D), not normalised."""
        mask = {} if self.padding is None else {"attention_mask": (tokens != self.padding).long()}
        read = self.text_model(input_ids=tokens, **mask)
        pooled = read.pooler_output
        return self._projected("text_projection", read.last_hidden_state[:, 0] if pooled is None else pooled)

    def _projected(self, name: str, pooled: Tensor) -> Tensor:
        projected: Tensor = getattr(self, name)(pooled) if hasattr(self, name) else pooled  # SigLIP has heads within
        return projected

    def tokens_read(self, tokens: Tensor) -> Tensor:
        """(B,T) -> (B,) long: the number of tokens of each text, from the first, that its features depend on."""
        if self.padding is not None:
            ends = ((tokens != self.padding).long() * torch.arange(1, tokens.shape[1] + 1)).amax(dim=-1)
        elif self.end is None:
            ends = torch.full((len(tokens),), tokens.shape[1])
        elif self.end == 2:  # configurations of before 2023, which the library reads off at the highest id
            ends = tokens.argmax(dim=-1) + 1
        else:
            ends = (tokens == self.end).int().argmax(dim=-1) + 1
        return ends

    def token_table(self) -> nn.Embedding:
        """The look-up table of the token ids."""
        named = self.text_model.named_modules()
        table: nn.Embedding = next(module for name, module in named if name.rpartition(".")[2] in _TABLES)
        return table


class HuggingFaceTokenizer:
    """Captions -> ids (B,T) of a tokenizer of the library, cut and padded to the context length."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> Tensor:
        """(B,T) long, T the tokenizer's own context length unless another is given."""
        length = context_length or self.context_length
        if not captions:
            return torch.empty((0, length), dtype=torch.long)
        rows = self.tokenizer(list(captions), padding="max_length", truncation=True, max_length=length)["input_ids"]
        return torch.tensor(rows, dtype=torch.long)

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({type(self.tokenizer).__name__}, context_length={self.context_length})"
