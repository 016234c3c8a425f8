"""Co-Attack (Zhang et al. 2022, "Towards adversarial attack on vision-language pre-training models"), for CLIP.

Shapes: N images, M captions, B images asked for, C channels, H height, W width, D embedding, P captions of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.losses import divergence, text_objective
from robustcli.attacks.core.oracle import ImageObjective
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target
from robustcli.utils.numbers import one_of


@dataclass(frozen=True, kw_only=True)
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

    caption: str = "last"
    balance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("caption", self.caption, ("last", "all"))

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, counter, text_objective("drift", target))
        if self.image is None:
            return target.pairs.images.clone(), captions
        objective = self.image_objective(target, target.encode_text(captions))
        clean, ids = target.pairs.images, target.pairs.image_ids.tolist()
        start = clean + target.threat.ball.eps * sample_noise(clean.shape[1:], ids, self.seed, "coattack").to(clean)
        return self.attack_images(target, counter, objective, start=start), captions

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
