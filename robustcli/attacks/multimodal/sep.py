"""Image and text attacks side by side (Sep-Attack), or in sequence (MAT).

Shapes: N images, M captions, C channels, H height, W width.
"""

from dataclasses import dataclass

from torch import Tensor

from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target


@dataclass(frozen=True, kw_only=True)
class SepAttack(RetrievalAttack):
    """Sep-Attack (Zhang et al. 2022): either side against the clean other one; with one part None the other alone."""

    def passes(self, problem: Problem) -> Passes | None:
        return self.passes_of_parts(problem)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        return self.attack_images(target, counter), self.attack_captions(target, counter)


@dataclass(frozen=True, kw_only=True)
class SequentialAttack(RetrievalAttack):
    """Attack of MAT (Waseda et al. 2026, section 3.2): the text against the clean image, then the image against that
    text, once.
    """

    def passes(self, problem: Problem) -> Passes | None:
        return self.passes_of_parts(problem)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        captions = self.attack_captions(target, counter)
        features = None if self.text is None or self.image is None else target.encode_text(captions)
        return self.attack_images(target, counter, text_features=features), captions
