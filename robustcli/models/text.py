"""The forward pass of any text tower: over as few tokens as is exact, from embeddings where asked.

Shapes: B batch, D embedding, T tokens, W width of the tower.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.models.hf_towers import HuggingFaceTowers
from robustcli.models.towers import TextTower


def crops(network: nn.Module) -> bool:
    """True where tokens after the end-of-text token change nothing: a causal tower, read off at the highest id."""
    tower = _tower(network)
    if isinstance(tower, TextTower):
        return True
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    plain = getattr(tower, "cls_emb", None) is None and hasattr(tower, "token_embedding")
    return plain and pooling == "argmax" and getattr(tower, "attn_mask", None) is not None


def tokens_read(network: nn.Module, tokens: Tensor) -> Tensor:
    """(B,T) -> (B,) long: the number of tokens of each text, from the first, that its features depend on."""
    if isinstance(network, HuggingFaceTowers):
        return network.tokens_read(tokens)
    return tokens.argmax(dim=-1) + 1 if crops(network) else torch.full((len(tokens),), tokens.shape[1])


def cut_captions(tokenizer: Callable[..., Tensor], captions: Sequence[str]) -> int:
    """Number of captions that do not fit into the context of ``tokenizer``, whose ends the network never sees.

    0 where that cannot be known: the tokenizer takes no ``context_length``.
    """
    if not captions or "context_length" not in signature(tokenizer).parameters:
        return 0
    rows = tokenizer(list(captions))
    padding = tokenizer([""])[0, -1]
    # Few, and only these are tokenized again, with more room. The last token may be an end that is padding as well.
    full = torch.nonzero(rows[:, -2] != padding).flatten()
    texts = [captions[row] for row in full.tolist()]
    if not texts:
        return 0
    longer = tokenizer(texts, context_length=rows.shape[1] + 1)
    return int((longer[:, :-1] != rows[full]).any(1).sum())


def token_table(network: nn.Module) -> nn.Embedding:
    """The look-up table of the token ids; `TypeError` for a tower without one."""
    if isinstance(network, HuggingFaceTowers):
        return network.token_table()
    tower = _tower(network)
    table = tower.token_embedding if hasattr(tower, "token_embedding") else tower.transformer.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"the text tower {type(tower).__name__} has no table of token embeddings")
    return table


def read_text(network: nn.Module, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
    """(B,T) long -> (B,D), not normalised; where ``crops``, T may be below the context; ``embeddings`` is (B,T,W)."""
    tower = _tower(network)
    if isinstance(tower, TextTower):
        return tower(tokens, embeddings)  # type: ignore[no-any-return]
    if crops(network):
        return _read_causal(tower, tokens, embeddings)
    return _read_whole(network, tokens, embeddings)


def _tower(network: nn.Module) -> Any:
    """open_clip's ``CLIP`` carries the parts of its text tower itself, all others have it under ``text``."""
    return getattr(network, "text", network)


def _read_causal(tower: Any, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
    """The forward pass of open_clip's causal tower over the first T positions only."""
    length, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens) if embeddings is None else embeddings
    x = x.to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    ends = tokens.argmax(dim=-1)
    pooled: Tensor = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection = tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection  # type: ignore[no-any-return]


def _read_whole(network: Any, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
    """The network's own forward pass; a hook, gone before the call returns, stands in for the look-up."""
    if embeddings is None:
        return network.encode_text(tokens)  # type: ignore[no-any-return]
    handle = token_table(network).register_forward_hook(lambda *_: embeddings)
    try:
        return network.encode_text(tokens)  # type: ignore[no-any-return]
    finally:
        handle.remove()
