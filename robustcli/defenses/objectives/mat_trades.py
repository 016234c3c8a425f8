"""MAT with the outer loss of TRADES (Zhang et al. 2019): the clean loss, and the divergence of the attacked batch from
it. Our own combination.

Shapes: B pairs, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.data.sampling import PairBatch
from robustcli.defenses.objectives.losses import Positives, info_nce, kl_divergence
from robustcli.defenses.objectives.pairs import PairObjective, attack_captions, attack_images
from robustcli.models import DualEncoder
from robustcli.utils.numbers import parse_number


@dataclass(frozen=True, kw_only=True)
class MATTrades(PairObjective):
    """``InfoNCE(x, t) + beta KL(p(x, t) | p(x', t'))``, p the softmax of the similarities of a batch over its rows and
    its columns; captions are attacked first, then images, which maximise the divergence.

    Args:
        name: in tables.
        beta: weight of the divergence, 0 or more; unverified, 6 is that of TRADES on CIFAR.
        positives: treatment of the other true pairs of a batch in the clean loss, see `info_nce`.

    Raises:
        UserError: beta below 0.
    """

    name: str = "mat_trades"
    beta: float = 6.0
    positives: Positives = "mask"

    def __post_init__(self) -> None:
        parse_number("beta", self.beta, node="defense")

    @property
    def sides(self) -> tuple[str, ...]:
        return ("image", "text")

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
        captions = attack_captions(model, attack, threat, images, batch, seed=seed)
        clean_image, clean_text = model.encode_image(images), model.encode_text(model.tokenize(batch.captions))
        scale, matches = model.logit_scale, batch.matches.to(images.device)
        attacked_text = model.encode_text(model.tokenize(captions))
        clean = scale * clean_image @ clean_text.T
        fixed_clean, fixed_text = clean.detach(), attacked_text.detach()
        adversarial = attack_images(
            model,
            attack,
            threat,
            images,
            batch,
            lambda x: divergence(fixed_clean, scale.detach() * model.encode_image(x) @ fixed_text.T),
            seed=seed,
        )
        attacked = scale * model.encode_image(adversarial) @ attacked_text.T
        contrast = info_nce(clean_image, clean_text, scale, matches, positives=self.positives).mean()
        return contrast + self.beta * divergence(clean, attacked).mean()


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """Logits (B,B) and (B,B) -> (B,): KL of the softmax of each row, and of the column of its pair, their mean."""
    return torch.stack([kl_divergence(clean, attacked), kl_divergence(clean.T, attacked.T)]).mean(0)
