"""A masked language model that echoes: the row of a piece proposes that piece first."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["the", "guitar", "near", "mountain", "snow", "board", "##ing", "##y", "hill"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def save_echo(path: Path, transformers: Any, *, rows: int = len(VOCABULARY)) -> Path:
    """A BERT of one layer that passes its input on, in a folder as `MaskedLM` reads it.

    Args:
        rows: of its vocabulary; those beyond the words get the highest logits at each place.
    """
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=rows,
        hidden_size=len(VOCABULARY),
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        # A row's best piece is its own, and the others follow in order.
        model.bert.embeddings.word_embeddings.weight.copy_(torch.eye(rows, len(VOCABULARY)))
        model.cls.predictions.transform.dense.weight.copy_(10 * torch.eye(len(VOCABULARY)))
        model.cls.predictions.bias.copy_(-0.01 * torch.arange(rows).float())
        model.cls.predictions.bias[len(VOCABULARY) :] = 100.0
    model.save_pretrained(path)
    return path
