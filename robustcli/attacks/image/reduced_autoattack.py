"""The reduced AutoAttack by which Serez et al. 2025 (arXiv 2412.03453) judge purification: smallest L2 changes.

Shapes: N samples, B of them, C channels, H height, W width, Y classes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.classifier import ClassifierAttack, MinimumNormAttack
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.threat import Eps, at_least, parse_eps
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.smallest import Smallest
from robustcli.utils.errors import UserError

_DLR_CLASSES = 4  # the DLR loss compares with the third-highest logit of another class


class ReducedAutoAttack(MinimumNormAttack):
    """The nearest success of APGD on cross-entropy, APGD on DLR (of more than three classes) and FAB.

    Weaker than AutoAttack: neither Square nor targeted members. Each APGD is run at a few radii, and an image that is
    misled within one is not put to a larger one.

    Args:
        norm: ``l2``, which the radii are of.
        eps, seed: see `MinimumNormAttack`.
        cross_entropy, dlr: radii of the two APGD; the paper's are .5, 1, 4 and .5, 2, 4.
        steps: of APGD. fab_steps: of FAB.

    Raises:
        UserError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        *,
        norm: str = "l2",
        eps: Eps | None = None,
        cross_entropy: Sequence[Eps] = (0.5, 1, 4),
        dlr: Sequence[Eps] = (0.5, 2, 4),
        steps: int = 64,
        fab_steps: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(norm=norm, eps=eps, seed=seed)
        if self.norm != "l2":
            raise UserError(
                f"attack.image.norm is {self.norm!r}: the reduced AutoAttack is for l2, AutoAttack for both."
            )
        self.cross_entropy = tuple(sorted(parse_eps(radius, norm) for radius in cross_entropy))
        self.dlr = tuple(sorted(parse_eps(radius, norm) for radius in dlr))
        self.steps, self.fab_steps = at_least("steps", steps, 0), at_least("fab_steps", fab_steps, 0)

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        best = Smallest(images, labels, self.norm, oracle, enough=self.eps)
        every = torch.arange(len(images), device=images.device)
        logits = oracle.logits(images, every)
        best.offer(images, every, logits)
        for radius, member in self._members(logits.shape[1], randomised=oracle.randomised):
            rows = every[best.open(every) & (best.norm > radius)]
            if not len(rows):
                continue
            with oracle.part(rows) as part:
                found = member.mislead(
                    part, images[rows], labels[rows], sample_ids[rows.to(sample_ids.device)]
                ).detach()
            if member.budget is not None:
                found = member.budget.settle(found, images[rows])
            best.offer(found, rows, oracle.logits(found, rows))
        return best.images

    def _members(self, classes: int, *, randomised: bool) -> Iterator[tuple[float, ClassifierAttack]]:
        """Each with the distance within which it has nothing to add."""
        losses = {"gallery": self.cross_entropy, **({"dlr": self.dlr} if classes >= _DLR_CLASSES else {})}
        for loss, radii in losses.items():
            for radius in radii:
                # A success of a single draw proves nothing: on a model that draws every step is taken.
                yield (
                    radius,
                    APGD(
                        norm=self.norm,
                        eps=radius,
                        steps=self.steps,
                        loss=loss,
                        early_stop=not randomised,
                        seed=self.seed,
                    ),
                )
        yield 0.0, FAB(norm=self.norm, eps=self.eps, steps=self.fab_steps, seed=self.seed)
