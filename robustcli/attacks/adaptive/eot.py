"""Expectation over transformation (Athalye et al. 2018, "Synthesizing robust adversarial examples"): attacks on
the average of a randomised model.

Shapes: B images, N images of the pairs, M captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustcli.attacks.adaptive.averaging import AveragedClassifier, AveragedEncoder, checked, draws_by_pass
from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter, spread
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.pairs import Alternative
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.retrieval import RetrievalAttack, TextAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class EOT(WrappedAttack):
    """EOT: any attack on classifiers, against logits averaged over ``draws`` fresh draws in place of a single one.

    A pass costs ``draws`` passes of the model, but where the search asks a part of it that does not draw. The result is
    judged by a draw of the bare model that the attack has not seen; see `judge_on_draws` for more. A model that draws
    once a pass gets a pass a draw, any other all draws in one batch.

    Args:
        attack: the search.
        draws: for each image and pass, 1 or more; each is counted as a query of its own.
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

    def passes(self, problem: Problem) -> Passes | None:
        spent = self.attack.passes(problem)
        return None if spent is None else spent * self.draws

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        apart = draws_by_pass(oracle.model, images)
        model = AveragedClassifier(oracle.model, self.draws, chunk=self.chunk, reduce=self.reduce, apart=apart)
        draw_counter = QueryCounter.of(len(images))
        averaged = LogitOracle(model, draw_counter, randomised=oracle.randomised)
        x_adv = self.attack.search(averaged, images, labels, sample_ids, threat)
        # Each pass of the average is a pass of the bare model for each draw, backward as well as forward.
        oracle.counter.add(draw_counter, times=self.draws if self.attack.asks(model) else 1)
        oracle.members = averaged.members
        return x_adv


@dataclass(frozen=True, kw_only=True)
class RetrievalEOT(RetrievalAttack):
    """`EOT` for dual encoders with a randomised image tower: any retrieval attack, against the averaged image
    embedding.

    Queries are judged with a draw of the bare model. The costs of the draws are booked in even shares of the images.

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

    def passes(self, problem: Problem) -> Passes | None:
        spent = self.attack.passes(problem)
        draws = {"forward": self.draws, "backward": self.draws}
        return spent and replace(spent, **{name: times * getattr(spent, name) for name, times in draws.items()})

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        first = next(iter(self.alternatives(target, counter).values()))
        return first.images, first.captions

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, Alternative]:
        torch.manual_seed(derive_seed(self.seed, "eot"))  # of a randomised model; the base puts the state back
        apart = draws_by_pass(target.model.encode_image, target.pairs.images)
        model = AveragedEncoder(target.model, self.draws, chunk=self.chunk, apart=apart)
        averaged = Target(model, target.pairs, target.gallery, target.threat)
        averaged.encoder = target.encoder
        alternatives = self.attack.alternatives(averaged, counter)
        # The search has counted one pass for each average; the others are known in sum alone, so they are spread.
        for counts, passes in ((counter.queries, model.forward_images), (counter.gradients, model.backward_images)):
            counts.add_(spread((self.draws - 1) * passes, len(counts)))
        return alternatives
