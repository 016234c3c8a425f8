"""New captions of images by a pretrained captioner, which does not see the captions of the set.

Shapes: B images, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image

from robustcli.data.augment.base import Augmenter, to_bytes
from robustcli.data.augment.generation import Sampling, cleaned, generate, prepare_padding
from robustcli.data.augment.pretrained import library, model_folder, read, weight_files, weights_sha256
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least
from robustcli.utils.seeding import generator

_LIKE = "an image-to-text model of transformers with its processor"


class Captioner(Augmenter):
    """Captions drawn from a model of images: BLIP and its kind, an encoder with a decoder, a chat model with images.

    Args:
        model: folder of a model of transformers with its processor.
        number: captions of an image; empty ones are left out.
        prompt: what the model goes on from, or answers; None: nothing.
        chat: give image and prompt as a user's turn, where the processor has a template of turns.
        sampling: see `Sampling`.

    Raises:
        UserError: a value out of range, no model to be read, or a chat model without a prompt.
    """

    def __init__(
        self,
        *,
        model: str | None,
        number: int,
        prompt: str | None = None,
        chat: bool = True,
        device: torch.device | None = None,
        **sampling: Any,
    ) -> None:
        self.number, self.sampling = at_least("number", number, 1, node="augment"), Sampling(**sampling)
        self.prompt, self.model = prompt, model
        transformers = library("transformers", "hf")
        folder = model_folder("model", model, "config.json", _LIKE)
        local = {"local_files_only": True, "trust_remote_code": False}

        def make() -> tuple[Any, Any, Any]:
            processor = transformers.AutoProcessor.from_pretrained(folder, **local)
            if not hasattr(processor, "image_processor"):  # an encoder and a decoder, each with a part of its own
                processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
            else:
                tokenizer = processor.tokenizer
            return processor, tokenizer, transformers.AutoModelForImageTextToText.from_pretrained(folder, **local)

        self._processor, self._tokenizer, captioner = read("model", folder, _LIKE, make)
        self._captioner = captioner.to(device or torch.device("cpu")).eval().requires_grad_(False)
        self.model_sha256 = weights_sha256(weight_files(folder))
        self._turns = chat and bool(getattr(self._processor, "chat_template", None))
        if self._turns and not prompt:
            raise UserError("augment.prompt is null, and this model answers prompts: give one, or augment.chat=false.")
        if prompt and not hasattr(self._processor, "tokenizer"):
            raise UserError(f"augment.prompt is {prompt!r}: this model takes images alone, set it to null.")
        prepare_padding(self._tokenizer, left=True)

    @classmethod
    def build(cls, settings: Mapping[str, Any], device: torch.device) -> Self:
        """The method of a config, its model on ``device``."""
        return cls(**settings, device=device)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        inputs = self._inputs([Image.fromarray(each) for each in to_bytes(data.images(torch.tensor(images)))])
        made: dict[int, list[AugmentedPair]] = {image: [] for image in images}
        for turn in range(self.number):
            generators = [generator("captioner", seed, data.image_ids[image], turn) for image in images]
            ids = generate(self._captioner, inputs, self.sampling, generators)
            asked = inputs["input_ids"].cpu() if "input_ids" in inputs else ids[:, :0]
            if ids.shape[1] >= asked.shape[1] and torch.equal(ids[:, : asked.shape[1]], asked):
                ids = ids[:, asked.shape[1] :]  # a decoder alone repeats what it was asked
            texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            for image, text in zip(images, texts, strict=True):
                if caption := cleaned(text, self.prompt or ""):
                    made[image].append(AugmentedPair(source=image, caption=caption))
        return [pair for image in images for pair in made[image]]

    def _inputs(self, pictures: Sequence[Image.Image]) -> Any:
        """What the model takes, of B pictures and the prompt."""
        if not self.prompt:
            return self._processor(images=list(pictures), return_tensors="pt")
        prompt = self.prompt
        if self._turns:
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
            prompt = self._processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        texts = [prompt] * len(pictures)
        return self._processor(images=list(pictures), text=texts, padding=True, return_tensors="pt")
