"""Expectation over transformation (Athalye et al. 2018, "Synthesizing robust adversarial examples"): attacks on a model
that draws, by way of its average.

Shapes: B images, N images of the pairs, M captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.attacks.adaptive.averaging import AveragedClassifier, AveragedEncoder, checked, draws_by_pass
from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter, spread
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.retrieval import RetrievalAttack, TextAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
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

    draws: int = 20
    chunk: int | None = None
    reduce: str = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(self.draws, self.chunk, self.reduce)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        apart = draws_by_pass(oracle.model, images)
        model = AveragedClassifier(oracle.model, self.draws, chunk=self.chunk, reduce=self.reduce, apart=apart)
        spent = QueryCounter.of(len(images))
        averaged = LogitOracle(model, spent, randomised=oracle.randomised)
        found = self.attack.search(averaged, images, labels, sample_ids, threat)
        oracle.counter.add(spent, times=self.draws)
        return found


@dataclass(frozen=True, kw_only=True)
class RetrievalEOT(RetrievalAttack):
    """`EOT` for dual encoders whose image tower draws: any retrieval attack, put to the averaged image embedding.

    Queries are judged with a draw of the bare model. The costs of the draws are shared out evenly among the images.

    Args:
        attack: the search.
        draws, chunk: see `AveragedEncoder`.
    """

    attack: RetrievalAttack = field(kw_only=False)
    image: ImageAttack | None = field(init=False, repr=False)
    text: TextAttack | None = field(init=False, repr=False)
    seed: int = field(init=False, repr=False)
    draws: int = 20
    chunk: int | None = None

    def __post_init__(self) -> None:
        self._store(image=self.attack.image, text=self.attack.text, seed=self.attack.seed)
        checked(self.draws, self.chunk)

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        return next(iter(self.alternatives(target, counter).values()))

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        torch.manual_seed(derive_seed(self.seed, "eot"))  # of a model that draws; the base puts the state back
        apart = draws_by_pass(target.model.encode_image, target.pairs.images)
        model = AveragedEncoder(target.model, self.draws, chunk=self.chunk, apart=apart)
        averaged = Target(model, target.pairs, target.gallery, target.threat)
        averaged.encoder = target.encoder
        found = self.attack.alternatives(averaged, counter)
        for counts, passes in ((counter.queries, model.asked), (counter.gradients, model.graded)):
            counts.add_(spread((self.draws - 1) * passes, len(counts)))
        return found
