"""New images by pretrained diffusion models: of a caption, or of an image and its caption.

Shapes: B images, H height, W width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robustcli.data.augment.base import Augmenter, to_bytes
from robustcli.data.augment.pretrained import library, model_folder, quiet, read, weight_files, weights_sha256
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, parse_number
from robustcli.utils.seeding import generator

_LIKE = "a diffusion pipeline of diffusers with safetensors"


class _Diffusion(Augmenter):
    """A pipeline of diffusers with the settings that both directions share.

    Images that the pipeline's own safety checker flags are left out: it paints them black.
    """

    name: ClassVar[str]
    auto: ClassVar[str]  # the class of diffusers that reads the folder

    def __init__(
        self,
        *,
        model: str | None,
        number: int,
        steps: int,
        guidance: float,
        size: int | None = None,
        negative_prompt: str | None = None,
        lora: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.number, self.steps = (at_least(key, value, 1, node="augment") for key, value in _counts(number, steps))
        self.guidance = parse_number("guidance", guidance, node="augment")
        self.size = None if size is None else at_least("size", size, 1, node="augment")
        self.negative_prompt, self.model = negative_prompt, model
        weights = _lora(lora)
        diffusers = library("diffusers", "diffusion")
        library("transformers", "diffusion")  # of the text encoder; read before `quiet`, which silences what is there
        folder = model_folder("model", model, "model_index.json", _LIKE)

        def make() -> Any:
            pipeline = getattr(diffusers, self.auto).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            return pipeline.to(device or torch.device("cpu"))

        self._pipeline = read("model", folder, _LIKE, make)
        if weights is not None:
            library("peft", "diffusion")
            read(
                "lora",
                weights,
                "weights of this pipeline",
                lambda: self._pipeline.load_lora_weights(
                    str(weights.parent), weight_name=weights.name, local_files_only=True, use_safetensors=True
                ),
            )
        self._pipeline.set_progress_bar_config(disable=True)
        multiple = int(getattr(self._pipeline, "vae_scale_factor", 8))
        if self.size is not None and self.size % multiple:
            raise UserError(f"augment.size is {self.size}: this model makes images of multiples of {multiple} pixels.")
        self.model_sha256 = weights_sha256([*weight_files(folder), *([] if weights is None else [weights])])

    @classmethod
    def build(cls, settings: Mapping[str, Any], device: torch.device) -> Self:
        """The method of a config, its pipeline on ``device``."""
        return cls(**settings, device=device)

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        captions_of = data.captions_of()
        asked = [image for image in images if len(captions_of[image])]
        made: dict[int, list[AugmentedPair]] = {image: [] for image in images}
        for turn in range(self.number if asked else 0):
            rows = [int(captions_of[image][turn % len(captions_of[image])]) for image in asked]
            # A generator an image: what is drawn for it does not depend on the images beside it.
            generators = [generator(self.name, seed, data.image_ids[image], turn) for image in asked]
            with quiet():
                answer = self._pipeline(
                    [data.captions[row] for row in rows],
                    negative_prompt=None if self.negative_prompt is None else [self.negative_prompt] * len(rows),
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    generator=generators,
                    output_type="np",
                    **self._inputs(data, asked),
                )
            flagged = getattr(answer, "nsfw_content_detected", None) or [False] * len(rows)
            for image, row, pixels, unsafe in zip(asked, rows, _rounded(answer.images), flagged, strict=True):
                if not unsafe:
                    made[image].append(AugmentedPair(source=image, source_caption=row, image=pixels))
        return [pair for image in images for pair in made[image]]

    def _inputs(self, data: ImageTextData, images: Sequence[int]) -> dict[str, Any]:
        """What the pipeline takes beside the captions."""
        raise NotImplementedError


class TextToImage(_Diffusion):
    """New images of the captions of an image; each stands with the caption that it was drawn from.

    Args:
        model: folder of a text-to-image pipeline of diffusers.
        number: new images for an image of the set, spread over its captions in turn.
        steps: of the sampler.
        guidance: scale of classifier-free guidance; 1: none.
        size: pixels of a side; None: the pipeline's own.
        negative_prompt: what is not to be seen; None: nothing.
        lora: safetensors file of LoRA weights; None: none.

    Raises:
        UserError: a value out of range, diffusers is missing, or no pipeline to be read.
    """

    name, auto = "text2image", "AutoPipelineForText2Image"

    def _inputs(self, data: ImageTextData, images: Sequence[int]) -> dict[str, Any]:
        return {} if self.size is None else {"height": self.size, "width": self.size}


class ImageToImage(_Diffusion):
    """New images of an image and one of its captions, with which each stands.

    Args:
        strength: share of the way to noise that an image goes before it is drawn again, in (0,1]; 1: nothing is left.
        size: pixels of a side that the image is brought to.
        model, number, steps, guidance, negative_prompt, lora: see `TextToImage`; ``strength * steps`` steps are done.

    Raises:
        UserError: as `TextToImage`, or a strength with which no step is done.
    """

    name, auto = "image2image", "AutoPipelineForImage2Image"

    def __init__(self, *, strength: float, steps: int, size: int, **settings: Any) -> None:
        self.strength = parse_number("strength", strength, node="augment")
        if self.strength > 1 or int(self.strength * at_least("steps", steps, 1, node="augment")) < 1:
            raise UserError(
                f"augment.strength is {strength}: it is a share, at most 1, and strength * steps at least one step."
            )
        super().__init__(steps=steps, size=size, **settings)

    def _inputs(self, data: ImageTextData, images: Sequence[int]) -> dict[str, Any]:
        assert self.size is not None
        side = (self.size, self.size)
        pictures = [Image.fromarray(each) for each in to_bytes(data.images(torch.tensor(images)))]
        return {
            "image": [picture.resize(side, Image.Resampling.BICUBIC) for picture in pictures],
            "strength": self.strength,
        }


def _counts(number: int, steps: int) -> tuple[tuple[str, int], ...]:
    return ("number", number), ("steps", steps)


def _lora(path: str | None) -> Path | None:
    if path is None:
        return None
    file = Path(path).expanduser()
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(f"augment.lora is {path!r}, where no such file is: give a .safetensors file of LoRA weights.")
    return file


def _rounded(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """(B,H,W,3) in [0,1] -> uint8."""
    rounded: NDArray[np.uint8] = (np.asarray(images).clip(0, 1) * 255).round().astype(np.uint8)
    return rounded
