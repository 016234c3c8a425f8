"""New captions by pretrained language models: rewritten after a prompt, or translated there and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch

from robustcli.data.augment.base import Augmenter
from robustcli.data.augment.generation import Sampling, TextModel, cleaned
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least
from robustcli.utils.seeding import generator

_CAPTION = "{caption}"
Answer = Callable[[Sequence[str], Sequence[tuple[str | int, ...]]], list[str]]


class LLMRewrite(Augmenter):
    """Captions rewritten by a language model, a decoder alone or an encoder and a decoder.

    Args:
        model: folder of a model of transformers with its tokenizer.
        number: outputs of an image, spread over its captions in turn; empty ones are left out.
        prompt: with ``{caption}`` in the place of the caption.
        chat: give the prompt as a user's turn, where the tokenizer has a template of turns.
        sampling: see `Sampling`.

    Raises:
        UserError: a prompt without ``{caption}``, a value out of range, or no model to be read.
    """

    def __init__(
        self,
        *,
        model: str | None,
        number: int,
        prompt: str,
        chat: bool = True,
        device: torch.device | None = None,
        **sampling: Any,
    ) -> None:
        self.number, self.sampling = at_least("number", number, 1, node="augment"), Sampling(**sampling)
        if not isinstance(prompt, str) or _CAPTION not in prompt:
            raise UserError(f"augment.prompt is {prompt!r}, without the caption: write {_CAPTION} where it belongs.")
        self.prompt, self.chat, self.model = prompt, chat, model
        self._writer = TextModel("model", model, device or torch.device("cpu"))
        self.model_sha256 = self._writer.sha256

    @classmethod
    def build(cls, settings: Mapping[str, Any], device: torch.device) -> Self:
        """The method of a config, its model on ``device``."""
        return cls(**settings, device=device)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        def answer(captions: Sequence[str], streams: Sequence[tuple[str | int, ...]]) -> list[str]:
            prompts = [self.prompt.replace(_CAPTION, caption) for caption in captions]
            generators = [generator("llm", seed, *stream) for stream in streams]
            return self._writer.answers(prompts, self.sampling, generators, chat=self.chat)

        return _rewritten(data, images, self.number, answer)


class BackTranslation(Augmenter):
    """Captions translated into another language and back.

    Args:
        there, back: folders of translation models of transformers with their tokenizers.
        number: outputs of an image, spread over its captions in turn; empty ones are left out.
        beams: above 1 both translations are the best of a beam search: nothing is drawn, and a caption has one output.
        prefix_there, prefix_back: words in front of what is translated, as T5 asks for them.
        sampling: see `Sampling`; of both translations.

    Raises:
        UserError: a value out of range, or no model to be read.
    """

    def __init__(
        self,
        *,
        there: str | None,
        back: str | None,
        number: int,
        beams: int = 1,
        prefix_there: str = "",
        prefix_back: str = "",
        device: torch.device | None = None,
        **sampling: Any,
    ) -> None:
        self.number, self.sampling = at_least("number", number, 1, node="augment"), Sampling(**sampling)
        self.beams = at_least("beams", beams, 1, node="augment")
        place = device or torch.device("cpu")
        self._ways = [
            (prefix, TextModel(key, path, place, seq2seq=True))
            for key, path, prefix in (("there", there, prefix_there), ("back", back, prefix_back))
        ]
        self.model = f"{there}, {back}"
        self.model_sha256 = ", ".join(model.sha256 for _, model in self._ways)

    @classmethod
    def build(cls, settings: Mapping[str, Any], device: torch.device) -> Self:
        """The method of a config, its models on ``device``."""
        return cls(**settings, device=device)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        def answer(captions: Sequence[str], streams: Sequence[tuple[str | int, ...]]) -> list[str]:
            texts = list(captions)
            for way, (prefix, model) in enumerate(self._ways):
                told = [place for place, text in enumerate(texts) if text]  # nothing is no text to translate
                generators = [generator("backtranslate", seed, way, *streams[place]) for place in told]
                prompts = [f"{prefix}{texts[place]}" for place in told]
                answers = model.answers(prompts, self.sampling, generators, beams=self.beams) if told else []
                texts = [""] * len(captions)
                for place, text in zip(told, answers, strict=True):
                    texts[place] = cleaned(text)
            return texts

        return _rewritten(data, images, self.number, answer, once=self.beams > 1)


def _rewritten(
    data: ImageTextData, images: Sequence[int], number: int, answer: Answer, *, once: bool = False
) -> list[AugmentedPair]:
    """Output number ``turn`` of each image, of its caption ``turn``, counted around; a pass has one row an image.

    Args:
        once: a caption has one output only.
    """
    captions_of = data.captions_of()
    made: dict[int, list[AugmentedPair]] = {image: [] for image in images}
    for turn in range(number):
        own = {image: captions_of[image].tolist() for image in images}
        asked = [image for image in images if own[image] and not (once and turn >= len(own[image]))]
        rows = [own[image][turn % len(own[image])] for image in asked]
        streams = [(data.image_ids[image], turn) for image in asked]
        texts = answer([data.captions[row] for row in rows], streams) if asked else []
        for image, row, text in zip(asked, rows, map(cleaned, texts), strict=True):
            if text:
                made[image].append(AugmentedPair(source=image, source_caption=row, caption=text))
    return [pair for image in images for pair in made[image]]
