"""Co-Attack (Zhang et al. 2022, "Towards adversarial attack on vision-language pre-training models"), for CLIP.

Shapes: N images, M captions, B images of a call, C channels, H height, W width, D embedding, P captions of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.losses import divergence, text_objective
from robustcli.attacks.core.oracle import ImageObjective
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target
from robustcli.utils.numbers import one_of


@dataclass(frozen=True, kw_only=True)
class CoAttack(RetrievalAttack):
    """Co-Attack for CLIP (Zhang et al. 2022): the caption first, then the image against that caption.

    Maximised are KL(clean || attacked caption) and then KL(attacked || clean image) + 3 KL(attacked image || attacked
    caption), of softmaxed embeddings. The image starts from U[0, eps], one-sided as in the original, but clamped to
    [0,1]. The losses of the parts are not read.

    Args:
        caption: guide of the image among its captions: ``last``, as the loop of the original leaves it, or the mean
            over ``all``.
        balance: weight of the term of the caption.
    """

    replaced = ("image.loss", "text.objective")

    caption: str = "last"
    balance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("caption", self.caption, ("last", "all"))

    def passes(self, problem: Problem) -> Passes | None:
        return self.passes_of_parts(problem)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, counter, text_objective("drift", target))
        if self.image is None:
            return target.pairs.images.clone(), captions
        objective = self.image_objective(target, target.encode_text(captions))
        clean, ids = target.pairs.images, target.pairs.image_ids.tolist()
        start = clean + target.threat.ball.eps * sample_noise(clean.shape[1:], ids, self.seed, "coattack").to(clean)
        return self.attack_images(target, counter, objective, start=start), captions

    def image_objective(self, target: Target, text_features: Tensor) -> ImageObjective:
        """Loss of the images, against the features (M,D) of the attacked captions; one pass of the image tower."""
        paired = target.paired

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            features = target.model.encode_image(images)
            divergences = divergence(features[:, None], text_features[paired.table[rows]])
            chosen = paired.valid[rows] if self.caption == "all" else paired.last(rows)
            from_text = torch.where(chosen, divergences, 0.0).sum(1) / chosen.sum(1).clamp(min=1)
            return divergence(features, target.image_features[rows]) + self.balance * from_text

        return objective
