"""Expectation over transformation (Athalye et al. 2018, "Synthesizing robust adversarial examples"): attacks on a model
that draws, by way of its average.

Shapes: B images, N images of the pairs, M captions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustcli.attacks.adaptive.averaging import AveragedClassifier, AveragedEncoder, checked, draws_by_pass
from robustcli.attacks.adaptive.wrapped import WrappedAttack, book, spread
from robustcli.attacks.core.base import RetrievalAttack
from robustcli.attacks.core.classifier import ClassifierAttack
from robustcli.attacks.core.oracle import LogitOracle, Meter
from robustcli.attacks.core.target import Target
from robustcli.utils.seeding import derive_seed


class EOT(WrappedAttack):
    """Any attack on classifiers, put to the average over ``draws`` fresh draws in place of a single one.

    What comes out is judged by a draw of the bare model that the attack has not seen; see `judge_on_draws` for more.
    A model that draws once a pass gets a pass for each draw, any other all draws in one batch.

    Args:
        attack: the search.
        draws: for each image and query, 1 or more; each is counted as a query of its own.
        chunk, reduce: see `AveragedClassifier`.

    Raises:
        UserError: see `AveragedClassifier`.
    """

    def __init__(
        self, attack: ClassifierAttack, *, draws: int = 20, chunk: int | None = None, reduce: str = "logits"
    ) -> None:
        super().__init__(attack)
        self.draws, self.chunk, self.reduce = checked(draws, chunk, reduce)

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        apart = draws_by_pass(oracle.model, images)
        model = AveragedClassifier(oracle.model, self.draws, chunk=self.chunk, reduce=self.reduce, apart=apart)
        spent = Meter.of(len(images))
        found = self.attack.mislead(LogitOracle(model, spent, randomised=oracle.randomised), images, labels, sample_ids)
        book(oracle.meter, spent, self.draws)
        return found


class RetrievalEOT(RetrievalAttack):
    """`EOT` for dual encoders whose image tower draws: any retrieval attack, put to the averaged image embedding.

    Queries are judged with a draw of the bare model. The costs of the draws are shared out evenly among the images.

    Args:
        attack: the search.
        draws, chunk: see `AveragedEncoder`.
    """

    def __init__(self, attack: RetrievalAttack, *, draws: int = 20, chunk: int | None = None) -> None:
        super().__init__(image=attack.image, text=attack.text, seed=attack.seed)
        self.attack = attack
        self.draws, self.chunk, _ = checked(draws, chunk)

    def find(self, target: Target, meter: Meter) -> tuple[Tensor, tuple[str, ...]]:
        return next(iter(self.alternatives(target, meter).values()))

    def alternatives(self, target: Target, meter: Meter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        torch.manual_seed(derive_seed(self.seed, "eot"))  # of a model that draws; the base puts the state back
        apart = draws_by_pass(target.model.encode_image, target.pairs.images)
        model = AveragedEncoder(target.model, self.draws, chunk=self.chunk, apart=apart)
        averaged = Target(model, target.pairs, target.gallery)
        averaged.encoder = target.encoder
        found = self.attack.alternatives(averaged, meter)
        for counter, passes in ((meter.queries, model.asked), (meter.gradients, model.graded)):
            counter.add_(spread((self.draws - 1) * passes, len(counter)))
        return found
