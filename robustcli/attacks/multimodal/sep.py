"""Images and captions attacked apart, or one after the other.

Shapes: N images, M captions, C channels, H height, W width.
"""

from dataclasses import dataclass

from torch import Tensor

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target


@dataclass(frozen=True, kw_only=True)
class SepAttack(RetrievalAttack):
    """Both sides apart, each against the other's clean one (Sep-Attack, Zhang et al. 2022); with one part None PGD
    or words alone.
    """

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        return self.attack_images(target, counter), self.attack_captions(target, counter)


@dataclass(frozen=True, kw_only=True)
class SequentialAttack(RetrievalAttack):
    """The text against the clean image, then the image against the attacked text, one pass (MAT, Waseda et al. 2026,
    section 3.2).
    """

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, counter)
        features = None if self.text is None or self.image is None else target.encode_text(captions)
        return self.attack_images(target, counter, text_features=features), captions
