"""Text of pretrained language models, each row drawn by a generator of its own.

Libraries draw the tokens of a batch from one global generator: a row would depend on the rows beside it. Here a row
reads one number a token from its own generator, and its text is that of any batch, but for the rounding of logits,
which differs with the shape of a batch and can tip a draw that lies within it.

Shapes: B rows, T tokens, V vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcli.data.augment.pretrained import library, model_folder, quiet, read, weight_files, weights_sha256
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_BULLET = re.compile(r"^(?:[-*•]|\d+[.)])\s+")
_PREFACE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)\b[^:\n]{0,80}:|here(?:'s|’s| is| are)\b[^:\n]{0,80}:"
    r"|(?:\w+ )?(?:caption|answer|output|rewrite|translation|paraphrase):)\s*",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’«»`*"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the drawing of tokens.

    Args:
        temperature: divides the logits; above 0.
        top_k: likeliest tokens that may be drawn; 0: all.
        top_p: smallest set of likeliest tokens with at least this probability; 1: all.
        max_new_tokens: of an output.

    Raises:
        UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k, 0, node="augment")
        at_least("max_new_tokens", self.max_new_tokens, 1, node="augment")
        if parse_number("temperature", self.temperature, node="augment") == 0:
            raise UserError("augment.temperature is 0, with which nothing is drawn: give a number above 0, such as 1.")
        if not 0 < parse_number("top_p", self.top_p, node="augment") <= 1:
            raise UserError(f"augment.top_p is {self.top_p}: it is a probability, above 0 and at most 1.")


class RowSampler:
    """Processor of logits that leaves one token a row, drawn by the row's own generator: a greedy search takes it.

    Args:
        generators: B, one a row.
    """

    def __init__(self, sampling: Sampling, generators: Sequence[torch.Generator]) -> None:
        self.sampling, self.generators = sampling, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B,T), (B,V) -> (B,V): 0 for the drawn token, minus infinity for all others."""
        settings = self.sampling
        logits, order = (scores.double() / settings.temperature).sort(dim=1, descending=True, stable=True)
        if settings.top_k:
            logits[:, settings.top_k :] = -torch.inf
        chances = logits.softmax(1)
        chances[chances.cumsum(1) - chances >= settings.top_p] = 0  # the likeliest one always stays
        reached = chances.cumsum(1)
        draws = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in self.generators])
        place = (reached <= draws.to(reached.device) * reached[:, -1:]).sum(1, keepdim=True)
        token = order.gather(1, place)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class TextModel:
    """A language model of a folder: a decoder alone, or an encoder and a decoder.

    Args:
        key: of the folder in the config, for messages.
        path: of the folder.
        seq2seq: True where only a model with an encoder will do.

    Raises:
        UserError: transformers is missing, or no such model can be read there.
    """

    def __init__(self, key: str, path: str | None, device: torch.device, *, seq2seq: bool = False) -> None:
        transformers = library("transformers", "hf")
        like = f"a {'translation' if seq2seq else 'language'} model of transformers with its tokenizer"
        folder = model_folder(key, path, "config.json", like)
        local = {"local_files_only": True, "trust_remote_code": False}

        def make() -> tuple[Any, Any, bool]:
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            encodes = bool(config.is_encoder_decoder)
            if seq2seq and not encodes:
                raise ValueError("it has no encoder")
            kind = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            return tokenizer, kind.from_pretrained(folder, **local), encodes

        self.tokenizer, model, self.encodes = read(key, folder, like, make)
        self.model = model.to(device).eval().requires_grad_(False)
        self.sha256 = weights_sha256(weight_files(folder))
        prepare_padding(self.tokenizer, left=not self.encodes)

    def answers(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        *,
        chat: bool = False,
        beams: int = 1,
    ) -> list[str]:
        """What the model writes after, or of, each prompt.

        Args:
            generators: one a prompt.
            chat: give each prompt as a user's turn, where the tokenizer has a template of turns.
            beams: above 1 the best of a beam search, nothing is drawn.
        """
        turns = chat and getattr(self.tokenizer, "chat_template", None)
        texts = [self._as_turn(prompt) for prompt in prompts] if turns else list(prompts)
        # A template writes the special tokens itself.
        inputs = self.tokenizer(texts, padding=True, add_special_tokens=not turns, return_tensors="pt")
        inputs.pop("token_type_ids", None)  # which a tokenizer may offer, and no generator takes
        ids = generate(self.model, inputs, sampling, generators, beams=beams)
        start = 0 if self.encodes else inputs["input_ids"].shape[1]
        texts = self.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        return list(texts)

    def _as_turn(self, prompt: str) -> str:
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def prepare_padding(tokenizer: Any, *, left: bool) -> None:
    """Let ``tokenizer`` fill up a batch on the left, where a decoder goes on after the last token."""
    if left:
        tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


@torch.no_grad()
def generate(
    model: Any, inputs: Any, sampling: Sampling, generators: Sequence[torch.Generator], *, beams: int = 1
) -> Tensor:
    """Token ids (B,T) that ``model.generate`` makes of ``inputs``, on the CPU.

    Settings of sampling that come with the model are not used, the others are, such as words that it never writes.
    """
    drawn = {} if beams > 1 else {"logits_processor": _processors(RowSampler(sampling, generators))}
    plain = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "max_length": None}
    # A copy, since BLIP writes into the ids of the prompt; pixels in the precision of the weights.
    fresh = {
        key: value.clone().to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }
    with quiet():  # of settings that come with the model and are not used
        ids: Tensor = model.generate(**fresh, **plain, **drawn, num_beams=beams, max_new_tokens=sampling.max_new_tokens)
    return ids.cpu()


def _processors(sampler: RowSampler) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList([sampler])


def cleaned(text: str, prompt: str = "") -> str:
    """The caption in an output: its first line, without thoughts, prefaces ("Here is ...:"), bullets and quotes.

    Args:
        prompt: of which some models repeat the words.
    """
    for line in _THOUGHT.sub("", text).strip().splitlines():
        line = " ".join(line.split())
        if prompt and line.lower().startswith(prompt.lower()):
            line = line[len(prompt) :].strip()
        line = _PREFACE.sub("", _BULLET.sub("", line).strip(_QUOTES + " ")).strip(_QUOTES + " ")
        if line:
            return line
    return ""
