"""Purification with many draws an image: folded, with one encoding an image, against two plainer ways.

For an NVAE, for e4e and for Style-Transformer in front of a StyleGAN2, and for an A-VAE.

*image by image* is how the published code does it: each image is repeated once a draw, all copies are encoded and
decoded, and the weights ask for gradients. *draw by draw* does so for one copy at a time; it is timed once.
Both get the very noise that ours gets, and torch's own layout of images.

Shapes: B images, R draws.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.report import Row, cpu_seconds, cpu_seconds_once
from robustcli.defenses import AdversarialVAE, Cleaner, PurifiedClassifier, Purifier
from robustcli.models import small_cnn
from robustcli.models.generators import (
    NVAE,
    E4EEncoder,
    Frame,
    StyleGAN2,
    StyleMixing,
    StyleTransformerEncoder,
    avae,
)

FORWARD_TARGET, BACKWARD_TARGET = 3.0, 4.0
SIZES = {
    "num_scales": 3,
    "num_groups_per_scale": 4,
    "is_adaptive": False,
    "min_groups_per_scale": 1,
    "num_cells_per_group": 2,
    "num_latent_per_group": 8,
    "num_nf_cells": None,
    "initial_channels": 16,
    "num_pre-post_process_blocks": 1,
    "num_pre-post_process_cells": 2,
    "num_logistic_mixtures": 5,
}


def run(*, quick: bool = False) -> list[Row]:
    """Forward, and forward and backward to the pixels, of an NVAE of the published kind, small, at 32 and 64 px, of
    StyleGAN2 behind both encoders, a quarter as wide as the published ones, at 128 px, and of an A-VAE at 64 px.
    """
    sizes = {**SIZES, "initial_channels": 4, "num_groups_per_scale": 1} if quick else SIZES
    rows = []
    for side, images in ((32, 2),) if quick else ((32, 4), (64, 2)):
        nvae = NVAE({"resolution": [3, side, side], "autoencoder": sizes})
        task = _Task(_mixing(nvae), nvae.resolution, images, 4 if quick else 32)
        rows += task.rows(f"{images} images of {side} px, {task.draws} draws", repeats=1 if quick else 2)
    size = (32, 2) if quick else (128, 16)
    for name, generator in {"e4e": faces(*size), "Style-Transformer": cars(*size)}.items():
        task = _Task(_mixing(generator), generator.resolution, 1, 4 if quick else 32)
        rows += task.rows(f"{name} and StyleGAN2, 1 image, {task.draws} draws", repeats=1)
    small: dict[str, Any] = {"resolution": [3, 32, 32], "encoder": [8] * 3, "decoder": [8] * 4, "style": 16}
    model, images = avae(**small if quick else {"resolution": [3, 64, 64]}), 2 if quick else 4
    task = _Task(AdversarialVAE(model), model.resolution, images, 4 if quick else 32)
    return rows + task.rows(f"A-VAE, {images} images, {task.draws} draws", repeats=1)


def _mixing(generator: NVAE | StyleMixing) -> Purifier:
    return Purifier(generator, alphas="cosine", attenuation=0.7)


def faces(side: int, width: int) -> StyleMixing:
    """e4e and a StyleGAN2 of random weights, for square images."""
    decoder, average = _stylegan(side, width), torch.zeros(8 * width)
    return StyleMixing(E4EEncoder(side, width=width), decoder, average, frame=Frame(side, side, (0, side)))


def cars(side: int, width: int) -> StyleMixing:
    """Style-Transformer and a StyleGAN2 of random weights, for images with black bars above and below."""
    decoder, average = _stylegan(side, width), torch.zeros(8 * width)
    encoder = StyleTransformerEncoder(latents=decoder.latents, width=width)
    return StyleMixing(encoder, decoder, average, frame=Frame(side, side, (side // 8, side - side // 8)))


def _stylegan(side: int, width: int) -> StyleGAN2:
    channels = [min(8 * width, 64 * 8 * width // at) for at in (4, 8, 16, 32, 64, 128, 256)[: side.bit_length() - 2]]
    return StyleGAN2(side, style_dim=8 * width, channels=channels)


class _Task:
    def __init__(self, cleaner: Cleaner, resolution: Sequence[int], images: int, draws: int) -> None:
        self.draws = draws
        self.cleaner, self.classifier = cleaner, small_cnn(classes=10, channels=3, widths=[16, 32, 64], seed=0)
        self.model = PurifiedClassifier(self.classifier, cleaner, draws=draws, memory=8.0)
        source = torch.Generator().manual_seed(0)
        self.images = torch.rand(images, *resolution, generator=source)
        self.model.requires_grad_(False)
        self.found: dict[str, Tensor] = {}

    def rows(self, what: str, *, repeats: int) -> list[Row]:
        rows = []
        for graded, target in ((False, FORWARD_TARGET), (True, BACKWARD_TARGET)):
            sides = {"ours": self.folded, "image by image": self.by_image}
            cpu = cpu_seconds({side: self._timed(side, call, graded) for side, call in sides.items()}, repeats=repeats)
            cpu["draw by draw"] = cpu_seconds_once(self._timed("draw by draw", self.by_draw, graded))
            name = f"{what}, {'forward and backward' if graded else 'forward'}"
            rows += [
                Row(what=name, against=side, ours=cpu["ours"], other=cpu[side], at_least=target, note=self._note(side))
                for side in cpu
                if side != "ours"
            ]
        return rows

    def folded(self, images: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return self.model(images, noise)

    def by_image(self, images: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._plain(image.repeat(self.draws, 1, 1, 1), noise, i) for i, image in enumerate(images)])

    def by_draw(self, images: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                torch.cat(
                    [self._answer(image[None], noise, draw * len(images) + i) for draw in range(self.draws)]
                ).mean(0, keepdim=True)
                for i, image in enumerate(images)
            ]
        )

    def _plain(self, copies: Tensor, noise: Sequence[Tensor], row: int) -> Tensor:
        own = [latent[row :: len(self.images)] for latent in noise]
        cleaned = self.cleaner.finish(self.cleaner.prepare(copies), own)
        found: Tensor = self.classifier.unchecked(cleaned).mean(0, keepdim=True)
        return found

    def _answer(self, image: Tensor, noise: Sequence[Tensor], place: int) -> Tensor:
        own = [latent[place : place + 1] for latent in noise]
        cleaned = self.cleaner.finish(self.cleaner.prepare(image), own)
        found: Tensor = self.classifier.unchecked(cleaned)
        return found

    def _timed(self, side: str, call: Callable[[Tensor, Sequence[Tensor]], Tensor], graded: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        noise = self.cleaner.sample_noise(self.draws * len(self.images), self.images)

        def timed() -> None:
            with _plain(self.model) if side != "ours" else nullcontext(), torch.set_grad_enabled(graded):
                images = self.images.clone().requires_grad_(graded)
                logits = call(images, noise)
                if graded:
                    logits[:, 0].sum().backward()  # type: ignore[no-untyped-call]
                    self.model.zero_grad()
                self.found[side] = logits.detach()

        return timed

    def _note(self, side: str) -> str:
        return f"logits differ by at most {(self.found['ours'] - self.found[side]).abs().max():.1e}"


@contextmanager
def _plain(model: torch.nn.Module) -> Iterator[None]:
    """Weights that ask for gradients, and are therefore used as they are stored; and torch's own layout."""
    model.requires_grad_(True)
    with patch("robustcli.models.generators.nvae._laid_out", lambda x: x):
        yield
    model.requires_grad_(False)
