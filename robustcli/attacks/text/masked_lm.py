"""Candidate source from a masked language model (Li et al. 2020, BERT-Attack, as Co-Attack and SGA use it).

Shapes: B captions, T word pieces, V vocabulary, K candidates.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.pairs import DualEncoderLike
from robustcli.attacks.text.cached import Cached
from robustcli.attacks.text.candidates import CaptionedData, Replacements, digest
from robustcli.utils.errors import UserError
from robustcli.utils.words import affixes

_BATCH = 64
_PIECES, _CHOICES, _COMBINATIONS = 12, 4, 24  # of a word of several pieces; constants of the original


class MaskedLM:
    """Likeliest words of a masked language model in the place of each word, from one pass over the unmasked caption.

    For a word of one piece the ``top_k`` pieces whose logit is at least ``threshold``, likeliest first. For a word of
    more pieces the combinations of the four best pieces at each of its first twelve, the first 24 of them, ranked by
    the model's loss on the bare combination. Punctuation around a word stays; word endings ("##ing") and the word
    itself are left out.

    Args:
        name_or_path: of the Hugging Face hub, or a folder.
        top_k: pieces a position.
        threshold: of the logit, not of a probability, as in the field's code: it hardly ever bites.
        max_length: pieces of a caption, start and end included; words beyond get no candidates.
        compat: ``coattack`` reproduces a defect of that code: each word gets the candidates of the piece before it;
            and combinations that are several words are let through (a budget of words drops them later).

    Raises:
        UserError: transformers is not installed, or the model cannot be found.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        top_k: int = 10,
        threshold: float = 0.3,
        max_length: int = 30,
        compat: str | None = None,
    ) -> None:
        if compat not in (None, "coattack"):
            raise UserError(f"candidates.compat is {compat!r}: choose coattack, or null for the defect mended.")
        self.name_or_path, self.top_k, self.threshold = str(name_or_path), top_k, threshold
        self.max_length, self.compat = max_length, compat
        self._tokenizer, self._model = _load(self.name_or_path)
        self._words = torch.tensor(sorted(self._tokenizer.get_vocab().values()))

    @classmethod
    def build(
        cls,
        settings: Mapping[str, Any],
        data: CaptionedData,
        model: DualEncoderLike,
        words: Callable[[], Sequence[str]],
    ) -> Cached:
        """The source of a config, whose answers are kept on disk: a pass of the language model costs the most."""
        return Cached(cls(**settings))

    @property
    def fingerprint(self) -> str:
        weights = hashlib.sha256()
        for name, weight in sorted(self._model.state_dict().items()):
            weights.update(name.encode())
            weights.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        words = sorted(self._tokenizer.get_vocab().items()), getattr(self._tokenizer, "do_lower_case", None)
        settings = (self.top_k, self.threshold, self.max_length, self.compat)
        return digest("masked-lm", weights.hexdigest(), *words, *settings)

    def __repr__(self) -> str:
        return (
            f"MaskedLM({self.name_or_path!r}, top_k={self.top_k}, threshold={self.threshold}, "
            f"max_length={self.max_length}, compat={self.compat!r})"
        )

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        answers: list[Replacements] = []
        for start in range(0, len(captions), _BATCH):
            answers.extend(self._batch(captions[start : start + _BATCH]))
        return answers

    def _batch(self, captions: Sequence[str]) -> list[Replacements]:
        words = [caption_words.split() for caption_words in captions]
        pieces = [[self._pieces(affixes(word)[1]) for word in row] for row in words]
        ids = [[piece for word in row for piece in word][: self.max_length - 2] for row in pieces]
        logits = self._logits([self._framed(row) for row in ids])
        values, best = logits.topk(min(self.top_k, len(self._words)), dim=-1)
        offset = 0 if self.compat == "coattack" else 1  # row 0 is the start token
        answers: list[Replacements] = []
        for row, (caption_words, word_pieces) in enumerate(zip(words, pieces, strict=True)):
            replacements, start = [], 0
            for position, (word, pieces_of_word) in enumerate(zip(caption_words, word_pieces, strict=True)):
                stop = start + len(pieces_of_word)
                if pieces_of_word and stop <= len(ids[row]):
                    span = slice(start + offset, stop + offset)
                    replacements += [
                        (position, new) for new in self._replacements(word, values[row, span], best[row, span])
                    ]
                start = stop
            answers.append(replacements)
        return answers

    def _replacements(self, word: str, values: Tensor, best: Tensor) -> list[str]:
        before, core, after = affixes(word)
        if len(best) == 1:
            likely = [piece for value, piece in zip(values[0], best[0], strict=True) if value >= self.threshold]
            proposals = [self._spelt([int(piece)]) for piece in likely]
        else:
            proposals = self._combinations(best)
        special = set(self._tokenizer.all_special_tokens)
        one_word = [new for new in proposals if self.compat == "coattack" or len(new.split()) == 1]
        kept = [new for new in one_word if new and "##" not in new and new not in special and new != core.lower()]
        return [f"{before}{new}{after}" for new in dict.fromkeys(kept)]

    def _combinations(self, best: Tensor) -> list[str]:
        choices = [row[:_CHOICES].tolist() for row in best[:_PIECES]]
        combinations = [list(chosen) for chosen in islice(product(*choices), _COMBINATIONS)]
        framed = [self._framed(chosen) for chosen in combinations]
        logits, ids = self._logits(framed), torch.tensor(framed)
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")[:, 1:-1].mean(1)
        return [self._spelt(combinations[i]) for i in losses.argsort(stable=True).tolist()]

    def _pieces(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids

    def _framed(self, ids: Sequence[int]) -> list[int]:
        start = (
            self._tokenizer.cls_token_id if self._tokenizer.cls_token_id is not None else self._tokenizer.bos_token_id
        )
        end = self._tokenizer.sep_token_id if self._tokenizer.sep_token_id is not None else self._tokenizer.eos_token_id
        return [start, *ids, end]

    def _spelt(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.convert_tokens_to_string(self._tokenizer.convert_ids_to_tokens(list(ids)))).strip()

    @torch.no_grad()
    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of ids, padded here -> (B,T,V); minus infinity where an id is no word of the tokenizer."""
        width = max(len(row) for row in rows)
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        # Vocabularies are padded, often to a multiple of 64: no word has those rows, and they have logits all the same.
        no_word = torch.ones(logits.shape[-1], dtype=torch.bool)
        no_word[self._words] = False
        return logits.float().masked_fill(no_word, -torch.inf)


def _load(name_or_path: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForMaskedLM, AutoTokenizer
    except ImportError as error:
        raise UserError("candidates needs transformers: install robustcli[hf].") from error
    folder = Path(name_or_path).expanduser()
    if _is_path(name_or_path) and not folder.is_dir():
        raise _no_model(name_or_path, "there is no such folder")
    try:
        with _quiet_hub():
            if folder.is_dir():
                tokenizer, model = _read(folder, AutoTokenizer, AutoModelForMaskedLM, local=True)
            else:
                tokenizer, model = _read_named(name_or_path, AutoTokenizer, AutoModelForMaskedLM)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(name_or_path, str(error)) from error
    return tokenizer, model.eval().requires_grad_(False)


def _read_named(name: str, *kinds: Any) -> list[Any]:
    """Objects of a name of the hub, from its cache where it holds them."""
    from huggingface_hub import HfApi

    try:
        return _read(name, *kinds, local=True)
    except (OSError, ValueError, KeyError):
        pass
    try:
        HfApi().model_info(name, timeout=10)  # the readers below would try for two minutes to reach a hub that is away
    except Exception as error:  # of a client whose exceptions have changed from version to version
        raise _no_model(name, f"no folder, and the hub said: {error}") from error
    return _read(name, *kinds, local=False)


def _read(place: str | Path, *kinds: Any, local: bool) -> list[Any]:
    return [kind.from_pretrained(str(place), local_files_only=local) for kind in kinds]


def _is_path(name: str) -> bool:
    """True of what can be no name of the hub, which is NAME or OWNER/NAME, or would lie in a folder that is here."""
    above = Path(name).parent
    return (
        name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or bool(above.name and above.is_dir())
    )


def _no_model(name: str, reason: str) -> UserError:
    first = (reason.strip().splitlines() or ["no reason was given"])[0]
    return UserError(
        f"candidates.name_or_path is {name!r}, where no masked language model is ({first}): "
        "give a folder of one, or a name of the Hugging Face hub."
    )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Context in which the hub's client says nothing of its retries: what fails in the end is a sentence."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
