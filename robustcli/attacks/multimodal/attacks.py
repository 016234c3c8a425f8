"""Attacks on pairs: which side moves first, and against what.

Shapes: N images, M captions, B images asked for, C channels, D embedding, P captions of an image, S scales.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.base import ImageAttack, RetrievalAttack, TextAttack
from robustcli.attacks.core.oracle import ImageObjective, Meter
from robustcli.attacks.core.threat import sample_noise
from robustcli.attacks.multimodal.losses import Target, divergence, known_loss, text_objective
from robustcli.utils.seeding import generator


class SepAttack(RetrievalAttack):
    """Both sides apart, each against the other's clean one (Sep-Attack, Zhang et al. 2022); with one part None PGD
    or words alone.
    """

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        return self.attack_images(target, meter), self.attack_captions(target, meter)


class SequentialAttack(RetrievalAttack):
    """The text against the clean image, then the image against the attacked text, one pass (MAT, Waseda et al. 2026,
    section 3.2).
    """

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, meter)
        features = None if self.text is None or self.image is None else target.encode_text(captions)
        return self.attack_images(target, meter, text_features=features), captions


class CoAttack(RetrievalAttack):
    """The caption drifts from itself; the image then from itself and from that caption (Zhang et al. 2022, Co-Attack
    for CLIP).

    Raised are KL(attacked || clean caption) and then KL(attacked || clean image) + 3 KL(attacked image || attacked
    caption), of softmaxed embeddings. The image starts from U[0, eps], one-sided as in the original, but clamped to
    [0,1]. The parts' own losses are not read.

    Args:
        caption: which caption of an image guides it: ``last``, as the original's loop leaves it, or the mean over
            ``all``.
        balance: weight of the caption's part.
    """

    def __init__(
        self,
        *,
        image: ImageAttack | None = None,
        text: TextAttack | None = None,
        caption: str = "last",
        balance: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__(image=image, text=text, seed=seed)
        self.caption = known_loss(caption, ("last", "all"), "attack.caption")
        self.balance = balance

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, meter, text_objective("drift", target))
        if self.image is None:
            return target.pairs.images.clone(), captions
        objective = self.image_objective(target, target.encode_text(captions))
        clean, ids = target.pairs.images, target.pairs.image_ids.tolist()
        start = clean + self.image.eps * sample_noise(clean.shape[1:], ids, self.seed, "coattack").to(clean)
        return self.attack_images(target, meter, objective, start=start), captions

    def image_objective(self, target: Target, text_features: Tensor) -> ImageObjective:
        """What the image raises, against the attacked captions (M,D)."""
        own = target.own

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            features = target.model.encode_image(images)
            apart = divergence(features[:, None], text_features[own.table[rows]])
            chosen = own.valid[rows] if self.caption == "all" else own.last(rows)
            from_text = torch.where(chosen, apart, 0.0).sum(1) / chosen.sum(1).clamp(min=1)
            return divergence(features, target.image_features[rows]) + self.balance * from_text

        return objective


Noise = Callable[
    [Tensor, tuple[int, ...]], Tensor
]  # rows (B,), shape of a sample's draw -> (B, *shape), standard normal


class SGA(RetrievalAttack):
    """Set-level guidance (Lu et al. 2023): captions against the clean image, the image against all of them at several
    scales, and the clean captions once more against the attacked image. Budgets do not add up.

    The image lowers the cosines to its attacked captions, summed over the image itself and its scaled copies: noise,
    bicubic resize, clamp, and back (clamped once more, since bicubic resizing overshoots). The noise is drawn anew for
    each scale and step.

    Args:
        scales: sides of the scaled copies, in shares of the image's own.
        sigma: standard deviation of the noise, in units of [0,1] pixels.
        noise: stands in for the noise, which comes from a generator of each image's own.
    """

    def __init__(
        self,
        *,
        image: ImageAttack | None = None,
        text: TextAttack | None = None,
        scales: Sequence[float] = (0.5, 0.75, 1.25, 1.5),
        sigma: float = 0.05,
        noise: Noise | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image=image, text=text, seed=seed)
        self.scales, self.sigma, self.noise = tuple(scales), sigma, noise

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, meter, text_objective("guided", target))
        if self.image is None:
            return target.pairs.images.clone(), captions
        objective = self.image_objective(target, target.encode_text(captions))
        images = self.attack_images(target, meter, objective)
        if self.text is None:
            return images, captions
        with torch.no_grad():
            features = target.model.encode_image(images)
        return images, self.attack_captions(target, meter, text_objective("guided", target, features))

    def image_objective(self, target: Target, text_features: Tensor) -> ImageObjective:
        """What the image raises, against the attacked captions (M,D)."""
        own, noise = target.own, self.noise or _own_noise(target.pairs.image_ids.tolist(), self.seed)

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            copies = self.scaled(images, lambda shape: noise(rows, shape))
            features = target.model.encode_image(torch.cat([images, *copies])).reshape(1 + len(copies), len(rows), -1)
            similarities = torch.einsum("sbd,bpd->bp", features, text_features[own.table[rows]])
            return -torch.where(own.valid[rows], similarities, 0.0).sum(1)

        return objective

    def scaled(self, images: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> list[Tensor]:
        """S noisy copies (B,C,H,W) that went through another size."""
        if not self.scales:
            return []
        noises = self.sigma * noise((len(self.scales), *images.shape[1:])).to(images)
        return [_there_and_back(images + noises[:, i], scale) for i, scale in enumerate(self.scales)]


def _there_and_back(images: Tensor, scale: float) -> Tensor:
    height, width = images.shape[-2:]
    size = (max(1, int(scale * height)), max(1, int(scale * width)))
    resized = F.interpolate(images, size, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    return F.interpolate(resized, (height, width), mode="bicubic", align_corners=False).clamp(0.0, 1.0)


def _own_noise(image_ids: Sequence[int], seed: int) -> Noise:
    """Noise from one generator an image, which goes on from call to call."""
    generators = [generator(seed, "sga", image_id) for image_id in image_ids]

    def noise(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generators[row]) for row in rows.tolist()])

    return noise
