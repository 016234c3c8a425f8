"""Learnt prompts: context vectors in front of the name of a class, in place of the words of a template.

CoOp (Zhou et al. 2022) learns them on clean images, adversarial prompt tuning (APT, Li et al. 2024) on attacked ones.

Shapes: M context vectors, W width of the text tower, Y classes, P templates, T tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.network import PROMPT, digest, of_image
from robustcli.models.weights import METADATA_KEY, read_safetensors
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic
from robustcli.utils.numbers import at_least
from robustcli.utils.seeding import generator

_HOLDER = "x"  # a word, one token of which stands where a context vector goes
_SPREAD = 0.02  # of the first values, as in CoOp


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt to learn, or one that was learnt.

    Args:
        length: M, 1 or more.
        per_class: True: every class has vectors of its own.
        seed: of the first values.
        context: (M,W), or (Y,M,W) of classes, float32; None: drawn from N(0, 0.02²) when a model is there.
        text_tower: fingerprint of the weights that the context was learnt with; empty: any.

    Raises:
        UserError: a length below 1.
    """

    length: int
    per_class: bool = False
    seed: int = 0
    context: Tensor | None = None
    text_tower: str = ""

    def __post_init__(self) -> None:
        at_least("length", self.length, 1, node="prompt")

    @property
    def template(self) -> str:
        """The text whose first M words give way to the context."""
        return f"{' '.join([_HOLDER] * self.length)} {{}}."

    def install(self, dual: DualEncoder, classes: int) -> nn.Parameter:
        """Give the network the context as the weight ``prompt_context``; the one that it had is replaced.

        Raises:
            UserError: a context of another text tower, or of another number of classes.
        """
        width = dual.token_embedding().weight.shape[1]
        shape = (classes, self.length, width) if self.per_class else (self.length, width)
        context = self.context
        if context is None:
            context = _SPREAD * torch.randn(shape, generator=generator(self.seed, "prompt"))
        elif tuple(context.shape) != shape or (self.text_tower and self.text_tower != text_tower(dual)):
            raise UserError(
                f"templates is a prompt {tuple(context.shape)} of another text tower or other classes; this model and "
                f"data set take {shape}: give the weights and the data set of its training."
            )
        weight = nn.Parameter(context.to(dual.device, torch.float32))
        dual.network.register_parameter(PROMPT, weight)
        return weight

    def places(self, dual: DualEncoder, tokens: Tensor) -> Tensor:
        """(Y,P,T) long -> (Y,P) long: where the run of M tokens begins that gives way to the context.

        Raises:
            UserError: the tokenizer makes no single token of each place, or has no room for them and the names.
        """
        empty = dual.tokenize([""])[0]
        own = [token for token in dual.tokenize([_HOLDER])[0].tolist() if token not in set(empty.tolist())]
        room = tokens.shape[-1] - self.length
        found = torch.zeros((*tokens.shape[:-1], 1), dtype=torch.bool)
        if len(own) == 1 and room > 0 and bool((tokens[..., -1] == empty[-1]).all()):
            found = (tokens.unfold(-1, self.length, 1) == own[0]).all(-1)
        if not bool(found.any(-1).all()):
            raise UserError(
                f"prompt.length is {self.length}, which with a name is more than the {tokens.shape[-1]} tokens that "
                "the model reads, or its tokenizer makes several of a letter: give fewer, or choose another model."
            )
        return found.long().argmax(-1)


def text_tower(dual: DualEncoder) -> str:
    """sha256 (hex) over the weights of the text tower, without a prompt."""
    state = dual.network.state_dict()
    left_out = ("logit_scale", "logit_bias", PROMPT)
    return digest({name: weight for name, weight in state.items() if not of_image(name) and name not in left_out})


def save_prompt(dual: DualEncoder, path: Path) -> None:
    """Write the learnt context of a model as safetensors, for ``templates=FILE``."""
    context = dual.network.get_parameter(PROMPT).detach().cpu().contiguous()
    stored = {"prompt": {"text_tower": text_tower(dual)}}
    with atomic(path) as temporary:
        save_file({PROMPT: context}, temporary, metadata={METADATA_KEY: json.dumps(stored, sort_keys=True)})


def read_prompt(path: Path) -> Prompt:
    """The prompt of a file that `save_prompt` wrote.

    Raises:
        UserError: no such file, damaged, or not a prompt's.
    """
    if not path.is_file():
        raise UserError(f"templates is {path}, but there is no such file.")
    stored, tensors = read_safetensors(path)
    context = tensors.get(PROMPT)
    if "prompt" not in stored or context is None or context.ndim not in (2, 3):
        raise UserError(
            f"templates is {path}, which holds no learnt prompt: give the prompt.safetensors of a run with "
            "prompt.length=..., or texts."
        )
    return Prompt(
        length=context.shape[-2],
        per_class=context.ndim == 3,
        context=context,
        text_tower=str(stored["prompt"].get("text_tower", "")),
    )
