"""Set-level guidance (Lu et al. 2023, "Set-level guidance attack").

Shapes: N images, M captions, B images of a call, C channels, H height, W width, D embedding, P captions of an image,
S scales.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.losses import text_objective
from robustcli.attacks.core.oracle import ImageObjective
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target
from robustcli.utils.rowwise import paired_cosines
from robustcli.utils.seeding import generator

Noise = Callable[
    [Tensor, tuple[int, ...]], Tensor
]  # rows (B,), shape of a sample's draw -> (B, *shape), standard normal


@dataclass(frozen=True, kw_only=True)
class SGA(RetrievalAttack):
    """SGA (Lu et al. 2023): captions against the clean image, the image against all of them at several scales, and the
    clean captions once more against the attacked image. Budgets do not add up.

    The image minimises the cosines to its attacked captions, summed over the image itself and its scaled copies: noise,
    bicubic resize, clamp, and back (clamped once more, since bicubic resizing overshoots). The noise is drawn anew for
    each scale and step.

    Args:
        scales: sides of the scaled copies, relative to that of the image.
        sigma: standard deviation of the noise, in units of [0,1] pixels.
        noise: source of the noise; None: a generator of each image's own.
    """

    replaced = ("image.loss", "text.objective")

    scales: Sequence[float] = (0.5, 0.75, 1.25, 1.5)
    sigma: float = 0.05
    noise: Noise | None = field(default=None, repr=False)

    def passes(self, problem: Problem) -> Passes | None:
        spent = self.passes_of_parts(problem)
        if spent is None or self.image is None:
            return spent
        images = replace(spent, searches=0) * (1 + len(self.scales))  # each copy of an image is a pass
        return images + (Passes() if self.text is None else Passes(forward=1, searches=2))

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, counter, text_objective("guided", target))
        if self.image is None:
            return target.pairs.images.clone(), captions
        objective = self.image_objective(target, target.encode_text(captions))
        images = self.attack_images(target, counter, objective)
        if self.text is None:
            return images, captions
        with torch.no_grad():
            features = target.model.encode_image(images)
        return images, self.attack_captions(target, counter, text_objective("guided", target, features))

    def image_objective(self, target: Target, text_features: Tensor) -> ImageObjective:
        """Loss of the images, against the features (M,D) of the attacked captions.

        An evaluation is a pass of the image tower over 1 + S copies of each image.
        """
        paired, noise = target.paired, self.noise or _noise_by_image(target.pairs.image_ids.tolist(), self.seed)

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            copies = self.scaled(images, lambda shape: noise(rows, shape))
            features = target.model.encode_image(torch.cat([images, *copies])).reshape(1 + len(copies), len(rows), -1)
            texts = text_features[paired.table[rows]]
            similarities = torch.stack([paired_cosines(scale, texts) for scale in features]).sum(0)
            return -paired.sum(similarities, rows)

        return objective

    def scaled(self, images: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> list[Tensor]:
        """S noisy copies (B,C,H,W), each resized to a scale and back."""
        if not self.scales:
            return []
        noises = self.sigma * noise((len(self.scales), *images.shape[1:])).to(images)
        return [_resized_and_back(images + noises[:, i], scale) for i, scale in enumerate(self.scales)]


def _resized_and_back(images: Tensor, scale: float) -> Tensor:
    height, width = images.shape[-2:]
    size = (max(1, int(scale * height)), max(1, int(scale * width)))
    resized = F.interpolate(images, size, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    return F.interpolate(resized, (height, width), mode="bicubic", align_corners=False).clamp(0.0, 1.0)


def _noise_by_image(image_ids: Sequence[int], seed: int) -> Noise:
    """Noise from one generator an image, fresh in each call."""
    generators = [generator(seed, "sga", image_id) for image_id in image_ids]

    def noise(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generators[row]) for row in rows.tolist()])

    return noise
