"""The batched word substitution against searches that take one caption at a time, over the same candidates.

The plain searches are written as the field writes them: a Python loop over captions, every text at the tower's full
length. Published code encodes either each candidate on its own or the candidates of a word together; both are timed.

BERT-Attack is timed as it is used: ours has the candidates at hand, as an earlier epoch or run left them, while
published code asks the language model again, one caption at a time, and then encodes the candidates of a word together.
The rows called importance are the same search with the candidates of a table at hand on both sides.

Shapes: M captions, K candidates, D embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg, get_tokenizer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Row, cpu_seconds
from robustcli.attacks import BertAttack, Cached, CandidateSource, MaskedLM, SynonymTable, WordSubstitution
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import divergence
from robustcli.data import Scenes
from robustcli.data.scenes import synonym_table, vocabulary
from robustcli.models import DualEncoder, tiny
from robustcli.utils.words import STOP_WORDS

TARGET, BERT_TARGET = 5.0, 8.0
SEARCHES = ("exhaustive", "importance")
_VIT_B_32 = {"width": 512, "heads": 8, "layers": 12}
_SMALL = {"width": 64, "heads": 2, "layers": 2}
_SMALL_BERT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

PLAIN = {"one candidate at a time": False, "one caption at a time": True}  # whether a word's candidates go together
_UNCACHED = "one caption at a time, no cache"


def run(*, quick: bool = False) -> list[Row]:
    """Each search on `tiny` and on the text tower of CLIP ViT-B/32, whose weights are random."""
    data = Scenes(split="test", train=1, val=1, test=64)
    rows = _compare("tiny", tiny(vocabulary()), data.captions[: 4 if quick else 128], repeats=1 if quick else 3)
    tower = clip_text_tower(**(_SMALL if quick else _VIT_B_32))
    few, name = data.captions[: 2 if quick else 4], "small CLIP" if quick else "ViT-B-32"
    rows += _compare(name, tower, few, repeats=1)
    with _language_model(_SMALL_BERT if quick else {}) as (source, directory):
        more = data.captions[: 2 if quick else 8]  # of four, a pass waits for the weights rather than for the captions
        task = _Task(tower, more, "importance", source)
        task.attack = BertAttack(candidates=Cached(source, directory))
        task.attack.source()(more)  # what an earlier run left
        return [*rows, *_rows(f"{name}, BERT-Attack", task, [_UNCACHED], BERT_TARGET, repeats=1)]


@contextmanager
def _language_model(sizes: Mapping[str, Any]) -> Iterator[tuple[MaskedLM, Path]]:
    """A BERT of random weights that knows the words of scenes, by default as large as ``bert-base-uncased``; and where
    to keep its answers.
    """
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    config = BertConfig(**sizes)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    with TemporaryDirectory() as name, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        directory = Path(name)
        words = [key[:-4] for key in get_tokenizer("ViT-B-32").encoder if key.endswith("</w>") and key[:-4].isalpha()]
        others = [word for word in words if len(word) > 2 and word not in known]  # one token each, as most words
        pieces = [*known, *others, *(f"piece{number}" for number in range(config.vocab_size))][: config.vocab_size]
        (directory / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
        BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
        BertForMaskedLM(config).save_pretrained(directory)
        yield MaskedLM(name, threshold=-99.0), directory


def clip_text_tower(*, width: int, heads: int, layers: int) -> DualEncoder:
    """open_clip's CLIP with this text tower and an image tower that is as small as can be, since nothing reads it."""
    text = CLIPTextCfg(width=width, heads=heads, layers=layers)
    vision = CLIPVisionCfg(image_size=32, patch_size=32, width=64, layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = CLIP(embed_dim=width, vision_cfg=vision, text_cfg=text)
    return DualEncoder(network, get_tokenizer("ViT-B-32"), image_size=32, mean=[0.5] * 3, std=[0.5] * 3)


def _compare(name: str, model: DualEncoder, captions: Sequence[str], *, repeats: int) -> list[Row]:
    source = SynonymTable({word: list(words) for word, words in synonym_table().items()})
    tasks = {search: _Task(model, captions, search, source) for search in SEARCHES}
    return [
        row
        for search, task in tasks.items()
        for row in _rows(f"{name}, {search}", task, list(PLAIN), TARGET, repeats=repeats)
    ]


def _rows(what: str, task: "_Task", others: Sequence[str], target: float, *, repeats: int) -> list[Row]:
    sides: dict[str, Callable[[], object]] = {"ours": task.batched}
    sides |= {side: partial(task.plain, side) for side in others}
    cpu = cpu_seconds(sides, repeats=repeats)
    return [
        Row(what=what, against=side, ours=cpu["ours"], other=cpu[side], at_least=target, note=task.agreement(side))
        for side in others
    ]


class _Task:
    """Captions to attack by one replaced word, away from images of random features."""

    def __init__(self, model: DualEncoder, captions: Sequence[str], search: str, source: CandidateSource) -> None:
        self.model, self.captions, self.search, self.source = model.eval(), tuple(captions), search, source
        self.attack = WordSubstitution(search=search, candidates=source)
        dimension = model.encode_text(model.tokenize(captions[:1])).shape[1]
        draws = torch.randn(len(captions), dimension, generator=torch.Generator().manual_seed(0))
        self.images = F.normalize(draws, dim=1)
        self.found: dict[str, tuple[str, ...]] = {}

    def agreement(self, side: str) -> str:
        """How many of the captions that came out are the same on both sides, and how many were edited at all."""
        ours, other = self.found["ours"], self.found[side]
        equal = sum(a == b for a, b in zip(ours, other, strict=True))
        edited = sum(a != b for a, b in zip(ours, self.captions, strict=True))
        return f"{equal} of {len(ours)} captions equal, {edited} edited"

    def batched(self) -> None:
        model = self.model
        fresh = DualEncoder(
            model.network, model.tokenizer, image_size=32, mean=[0.5] * 3, std=[0.5] * 3
        )  # no tokens kept
        with frozen(fresh):
            ids = torch.arange(len(self.captions))
            self.found["ours"] = self.attack.maximise(fresh, self._objective, self.captions, ids)

    def _objective(self, features: Tensor, rows: Tensor) -> Tensor:
        return -(features * self.images[rows]).sum(1)

    @torch.no_grad()
    def plain(self, side: str) -> None:
        search = {"exhaustive": self._exhaustive, "importance": self._importance}[self.search]
        found = (search(row, caption, PLAIN.get(side, True)) for row, caption in enumerate(self.captions))
        self.found[side] = tuple(found)

    def _exhaustive(self, row: int, caption: str, together: bool) -> str:
        best, best_loss = caption, self._losses([caption], row, together)[0]
        for texts in self._replaced(caption).values():
            for text, loss in zip(texts, self._losses(texts, row, together), strict=True):
                if loss > best_loss:
                    best, best_loss = text, loss
        return best

    def _importance(self, row: int, caption: str, together: bool) -> str:
        """The words in the order of what their absence does; the first one that has a replacement of higher loss."""
        replaced, words = self._replaced(caption), caption.split()
        masked = [" ".join([*words[:at], "[UNK]", *words[at + 1 :]]) for at in range(len(words))]
        clean = self._encode([caption], together)
        moved = divergence(clean, self._encode(masked, together)).tolist()
        clean_loss = self._losses([caption], row, together)[0]
        for at in sorted(replaced, key=lambda at: -moved[at]):
            losses = self._losses(replaced[at], row, together)
            if max(losses) > clean_loss:
                return replaced[at][losses.index(max(losses))]
        return caption

    def _replaced(self, caption: str) -> dict[int, list[str]]:
        words, texts = caption.split(), {}
        for at, word in self.source([caption])[0]:
            if words[at] not in STOP_WORDS and word not in STOP_WORDS:
                texts.setdefault(at, []).append(" ".join([*words[:at], word, *words[at + 1 :]]))
        return texts

    def _losses(self, texts: Sequence[str], row: int, together: bool) -> list[float]:
        losses: list[float] = (-(self._encode(texts, together) @ self.images[row])).tolist()
        return losses

    def _encode(self, texts: Sequence[str], together: bool) -> Tensor:
        groups = [list(texts)] if together else [[text] for text in texts]
        network, tokenizer = self.model.network, self.model.tokenizer
        return torch.cat([F.normalize(network.encode_text(tokenizer(group)), dim=-1) for group in groups])
