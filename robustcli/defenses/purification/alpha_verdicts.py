"""Verdicts on the images of a split for any alphas: as they are, changed beforehand, and attacked through the purifier.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from robustcli.attacks import ClassifierAttack, ThreatModel
from robustcli.data import ImageClassData
from robustcli.defenses.purification.alpha_images import AdversarialImages
from robustcli.defenses.purification.alpha_search import AlphaEvaluator

CLEAN, ADVERSARIAL, ADAPTIVE = "clean", "adversarial", "adaptive"


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Which images of a split are classified right, as a function of the alphas.

    Three kinds of images: ``clean``; ``adversarial``, made once and the same for all alphas; ``adaptive``, the clean
    ones attacked through the purifier with the very alphas.

    Attributes:
        evaluator: judges with draws of its own, the same for all alphas.
        data: the split.
        clean: (N,) long, places of the clean images, right or wrong.
        made: the adversarial ones; None: that kind is not judged.
        attack: of the adaptive ones, within ``threat``.
    """

    evaluator: AlphaEvaluator
    data: ImageClassData
    clean: Tensor
    made: AdversarialImages | None
    attack: ClassifierAttack
    threat: ThreatModel

    def rows(self, kind: str) -> Tensor:
        """Places of the images of ``kind`` in the split, (N,) long."""
        if kind != ADVERSARIAL:
            return self.clean
        assert self.made is not None
        return self.made.rows

    def right(self, kind: str, alphas: Sequence[float] | str) -> Tensor:
        """(N,) bool on the CPU: which images of ``kind`` are classified right with ``alphas``."""
        rows = self.rows(kind)
        labels = self.data.labels[rows]
        if kind == ADVERSARIAL:
            assert self.made is not None
            images = self.made.images
        else:
            images = self.data.images(rows)
        if kind == ADAPTIVE:
            images = self.evaluator.attacked(self.attack, self.threat, alphas, images, labels, rows)
        return self.evaluator.correct(alphas, images, labels, rows)

    def accuracy(self, kind: str, alphas: Sequence[float] | str) -> float:
        """Share of them, in [0,1]."""
        return float(self.right(kind, alphas).double().mean())

    def records(self, kind: str, name: str, alphas: Sequence[float] | str) -> pd.DataFrame:
        """A row an image of ``kind``, with the schedule's ``name`` and the verdict ``right``."""
        rows = self.rows(kind)
        return pd.DataFrame(
            {
                "alphas": name,
                "kind": kind,
                "image_id": [self.data.image_ids[i] for i in rows.tolist()],
                "label": [self.data.classes[i] for i in self.data.labels[rows].tolist()],
                "right": self.right(kind, alphas).numpy(),
            }
        )
