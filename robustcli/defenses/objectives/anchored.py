"""Objectives that hold the features of adversarial inputs to those of the original model; no pair is contrasted.

Shapes: B pairs, C channels, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.losses import squared_distance
from robustcli.defenses.objectives.pairs import Loss, PairObjective, attack_captions
from robustcli.defenses.objectives.visual import Texts, Tower, VisualObjective
from robustcli.models import DualEncoder


@dataclass(frozen=True, kw_only=True)
class FARE(VisualObjective):
    """Squared distance of the features of an adversarial image to the original features of the clean one,
    ``|f(x + delta) - f_original(x)|^2``, in the inner and the outer loss; the features are not of unit norm (Schlarmann
    et al. 2024, "Robust CLIP"). Texts are not read, and the text tower stays as it is.

    Args:
        name: in tables.
    """

    name: str = "fare"

    def step(
        self, tower: Tower, original: Tower, images: Tensor, texts: Texts, attacked: Callable[[Loss], Tensor]
    ) -> Tensor:
        with torch.no_grad():
            target = original(images)

        def distance(x: Tensor) -> Tensor:
            return squared_distance(tower(x), target)

        return distance(attacked(distance)).mean()


@dataclass(frozen=True, kw_only=True)
class LEAF(PairObjective):
    """Squared distance of the features of an attacked caption to the original features of the clean one,
    ``|g(t') - g_original(t)|^2``, not of unit norm in the outer loss (LEAF, Rocamora et al. 2025). The inner search
    compares features of unit norm, as all text attacks here. Images are not read, and the image tower stays as it is;
    the paper's budget is one character, ``threat=characters``.

    Args:
        name: in tables.
    """

    takes_reference: ClassVar[bool] = True

    name: str = "leaf"

    @property
    def sides(self) -> tuple[str, ...]:
        return ("text",)

    def loss(
        self,
        model: DualEncoder,
        attack: RetrievalAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: PairBatch,
        *,
        seed: int,
        reference: DualEncoder | None = None,
    ) -> Tensor:
        assert reference is not None
        with torch.no_grad():
            original = reference.encode_text(reference.tokenize(batch.captions), unit=False)
            directions = torch.nn.functional.normalize(original, dim=-1)

        def distance(features: Tensor, rows: Tensor) -> Tensor:
            return squared_distance(features, directions[rows])

        captions = attack_captions(model, attack, threat, images, batch, seed=seed, objective=distance)
        return squared_distance(model.encode_text(model.tokenize(captions), unit=False), original).mean()
