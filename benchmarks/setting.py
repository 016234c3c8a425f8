"""What several benchmarks time: a training step as a run makes it, from the composed configuration."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.builders.attacks import build_attack, build_threat
from robustcli.builders.candidates import build_candidates
from robustcli.builders.data import build_captioned
from robustcli.builders.models import build_dual_encoder
from robustcli.builders.objectives import build_objective
from robustcli.config.compose import compose
from robustcli.data.sampling import PairBatch, PairSampler
from robustcli.models import DualEncoder
from robustcli.utils.seeding import derive_seed


@dataclass
class Setting:
    """`tiny` on `scenes` with the attack of MAT: the defaults of ``train-mat``, but for the number of images.

    Args:
        batches: pairs and their images, loaded; each side of a comparison goes through them in turn, so that no step
            meets captions whose tokens it knows already.
    """

    model: DualEncoder
    attack: RetrievalAttack
    threat: ThreatModel
    clip: float
    batches: list[tuple[PairBatch, Tensor]]
    optimiser: torch.optim.Optimizer

    @classmethod
    def of(
        cls,
        *,
        batches: int,
        batch_size: int,
        overrides: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
    ) -> "Setting":
        """Composed and built as a run does it, from random weights: they cost what trained ones cost."""
        sizes = [f"dataset.train={batches * batch_size}", "model.checkpoint=null", "attacks=none", *overrides]
        config: Any = compose("train-mat", sizes)
        data = build_captioned(config.dataset, "train")
        model = build_dual_encoder(config.model, None, data, seed=0).train().to(device)
        threat = build_threat(config.threat)
        attack = build_attack(
            config.attack,
            threat,
            captions=True,
            candidates=lambda: build_candidates(config.candidates, data, model),
            seed=0,
            key="attack",
        ).attack
        sampler = PairSampler(data, batch_size=batch_size, seed=0)
        loaded = [(batch, data.images(batch.image_ids).to(device)) for batch in map(sampler, range(batches))]
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.trainer.lr, betas=(0.9, 0.98))
        return cls(model, attack, threat, config.trainer.clip, loaded, optimiser)

    def step(self, defense: str) -> Callable[[], None]:
        """A training step of ``defense=...``, on the next batch in each call."""
        config: Any = compose("train-mat", [f"defense={defense}", "attacks=none"])
        objective, numbers = build_objective(config.defense), itertools.count()

        def step() -> None:
            number = next(numbers)
            batch, images = self.batches[number % len(self.batches)]
            seed = derive_seed(0, "step", number, 0)
            self.update(objective.loss(self.model, self.attack, self.threat, images, batch, seed=seed))

        return step

    def update(self, loss: Tensor) -> None:
        """Backward pass, clipping and AdamW."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
