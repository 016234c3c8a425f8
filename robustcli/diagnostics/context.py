"""Context of the checks: one attack on one sample, its parts, and the runs that several checks share.

Shapes: N queries in all, Q of them attackable.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustcli.attacks import (
    EOT,
    AutoAttack,
    ClassifierAttack,
    RetrievalAttack,
    RetrievalAutoAttack,
    RetrievalEOT,
    RetrievalSurrogate,
    Surrogate,
    ThreatModel,
    frozen,
)
from robustcli.diagnostics.advice import Advice, ConfigKeys
from robustcli.diagnostics.changes import AnyAttack, image_search, layers, single_part
from robustcli.diagnostics.subjects import Outcome, Subject
from robustcli.utils.seeding import derive_seed

# Passes of the checks that are allowed in any case, for each image of the sample, for each of the closest ones and
# beside: those of a stronger search and of more restarts, those of the other comparisons without the black-box search,
# and those of the finite differences. A weak attack takes few passes, and a share of few would leave out what tells
# that it is weak.
_LEAST, _LEAST_OF_CLOSEST, _LEAST_BESIDE = 330, 600, 2560
# Survivors that a comparison attacks at least, those that the attack came closest to fooling: if any falls, then mostly
# one of them.
_CLOSEST = 8


class LeftOut(Exception):
    """A check that would take more passes than are left; its text is the reason."""


ENSEMBLES = (AutoAttack, RetrievalAutoAttack)
# Passes of the black-box search for each image, many where a pass is cheap: networks for images of up to so many values
# classify thousands in a second, and averaged draws multiply every pass.
_FEW_QUERIES, _MANY_QUERIES, _SMALL = 100, 1000, 4096


def draws_of(attack: AnyAttack) -> int:
    """Draws of the model that the attack averages (EOT); 1 where it does not."""
    for layer in layers(attack):
        if isinstance(layer, EOT | RetrievalEOT):
            return layer.draws
        if isinstance(layer, AutoAttack) and layer.version == "rand":
            return 20
    return 1


def black_box_queries(pixels: int, draws: int) -> int:
    """Forward passes of a black-box search on an image of C H W = ``pixels``, where nothing else is asked for."""
    return _FEW_QUERIES if pixels > _SMALL or draws > 1 else _MANY_QUERIES


def least_passes(images: int, queries: int) -> int:
    """Passes that the checks of a sample of so many images may take whatever the limit is."""
    return _LEAST * images + _CLOSEST * (queries + _LEAST_OF_CLOSEST) + _LEAST_BESIDE


class CheckContext:
    """An attack on a subject, with its runs cached. The image part is run with clean captions, the text part with clean
    images.

    Args:
        subject, attack: of the robust number under test.
        sources: other models by name, for transfer attacks.
        queries: forward passes of a black-box search; None: as many as images of this size afford.
        keys: config keys of the attack, for the advice.
        limit: passes that the attack and all checks may take together, see `afford`, or the checks alone what the
            `_LEAST` make where that is more; None: any number.

    Attributes:
        spent: passes of the checks that are done, see `passes`.
        threat: threat model of the subject.
        full_attack: the attack as it was given.
        image_attack, text_attack: its image and its text part, each None where the attack or the threat model has none.
        search: the innermost image attack.
        attackable: (N,) bool, queries that are correct when clean and whose image the attacker may edit.
        advice: remedy for each flaw.
    """

    def __init__(
        self,
        subject: Subject,
        attack: AnyAttack,
        *,
        sources: Mapping[str, Any],
        queries: int | None,
        keys: ConfigKeys,
        limit: int | None = None,
    ) -> None:
        self.limit, self.spent, self._shared = limit, 0, 0
        self.subject, self.sources, self.threat = subject, sources, subject.threat
        self.full_attack = attack
        self.image_attack = single_part(attack, "image") if self.threat.moves_images else None
        self.text_attack = single_part(attack, "text") if self.threat.moves_texts else None
        self.search: ClassifierAttack | None = None if self.image_attack is None else image_search(self.image_attack)
        self.attackable = subject.attackable("image")
        ensemble = "retrieval_autoattack" if isinstance(attack, RetrievalAttack) else "autoattack"
        self.queries = queries or black_box_queries(subject.pixels, self.draws)
        self._least = least_passes(len(subject.images), self.queries)
        self.advice = Advice(keys=keys, ensemble=ensemble, search=self.search)

    @cached_property
    def draws(self) -> int:
        """See `draws_of`."""
        return draws_of(self.full_attack)

    @cached_property
    def outcome(self) -> Outcome:
        """Outcome of the image part, unchanged; run once, with the same draws in whichever check asks for it first."""
        assert self.image_attack is not None
        with frozen(self.subject.model):
            torch.manual_seed(derive_seed(0, "diagnostics", "attack"))
            outcome = self.subject.attacked(self.image_attack)
        self._shared += int(outcome.passes.sum())
        return outcome

    def run(self) -> None:
        """Run the image part, if that was not done yet."""
        _ = self.outcome

    @property
    def passes(self) -> int:
        """Forward and backward passes of the checks so far, without those of `outcome` and of `_by_closeness`, which
        are no check's own.
        """
        return self.subject.passes - self._shared

    @property
    def left(self) -> float:
        """Passes that are left within the limit."""
        if self.limit is None:
            return math.inf
        attack = 0 if self.search is None else int(self.outcome.passes.sum())
        return max(self.limit - attack, self._least) - self.spent

    def afford(self, passes: float) -> None:
        """Check that so many more passes, an estimate, fit into the limit.

        Passes and not seconds are counted, so that which checks are run does not depend on the machine.

        Raises:
            LeftOut: they do not.
        """
        if passes > self.left:
            raise LeftOut(f"it takes about {passes:,.0f} passes of the model, and {max(self.left, 0):,} are left")

    def affordable_survivors(self, passes: float) -> Tensor:
        """Rows of the images with survivors that a comparison of so many ``passes`` an image attacks: all of them
        where half of what is left is enough, so that there is some for the next comparison; else the closest ones.

        Raises:
            LeftOut: what is left is not enough for `_CLOSEST`.
        """
        rows = self.images_of(self.survivors)
        half, count = self.left / 2, len(rows)
        if count * passes > half:
            count = min(count, max(_CLOSEST, int(half / passes)))
        self.afford(count * passes)
        return rows if count == len(rows) else self._by_closeness[:count].sort().values

    def affordable_queries(self, fewest: int, beside: int) -> int:
        """Queries of a black-box search, ``beside`` other passes an image: as many as are asked for where half of what
        is left is enough for `_CLOSEST` survivors; else fewer, but not below ``fewest``.
        """
        count = min(_CLOSEST, len(self.images_of(self.survivors))) * self.draws
        if not count or count * (self.queries + beside) <= self.left / 2:
            return self.queries
        return min(self.queries, max(fewest, int(self.left / 2 / count) - beside))

    @cached_property
    def _by_closeness(self) -> Tensor:
        """Rows of the images with survivors, by the margin where the image part ended, the closest to fooling first.

        What an attack leaves falls to a stronger one near the boundary first, so that a search of few of them tells
        nearly what a search of all does, for a part of its cost.
        """
        rows, before = self.images_of(self.survivors), self.subject.passes
        with frozen(self.subject.model), torch.no_grad():
            torch.manual_seed(derive_seed(0, "diagnostics", "closeness"))  # of a randomised model
            margins = self.subject.objective(rows)(self.outcome.images[rows].to(self.subject.images.device))
        self._shared += self.subject.passes - before
        order: Tensor = rows[margins.cpu().nan_to_num(torch.inf).argsort(descending=True, stable=True)]
        return order

    @property
    def most_passes(self) -> int:
        """The most passes that the image part took on an image of the sample: what it takes on one that survives."""
        return int(self.outcome.passes.max())

    def passes_on(self, queries: Tensor) -> int:
        """Estimate of the passes of the image part on the images of ``queries`` (N,) bool; more than it takes where
        many fall early.
        """
        return len(self.images_of(queries)) * self.most_passes

    @property
    def success(self) -> Tensor:
        """(Q,) bool: success of the image part, unchanged."""
        return self.outcome.success[self.attackable]

    def successes(self, attack: AnyAttack, threat: ThreatModel) -> Tensor:
        """(Q,) bool: success of another image part within another threat model."""
        return self.subject.attacked(attack, threat=threat).success[self.attackable]

    @cached_property
    def survivors(self) -> Tensor:
        """(N,) bool: attackable queries that the image part does not fool."""
        return self.attackable & ~self.outcome.success

    def images_of(self, queries: Tensor) -> Tensor:
        """Rows of the images of ``queries`` (N,) bool, each once."""
        rows: Tensor = torch.unique(self.subject.image_of[queries])
        return rows

    def compared(self, rows: Tensor, attacks: Iterable[AnyAttack], name: str) -> tuple[int, int, str]:
        """Survivors of the images ``rows`` that one of ``attacks`` fools, attackable queries, and both as a sentence
        with the ``name`` of the attacks.

        Survivors alone are attacked, so that the cost falls with the strength of the attack under test.
        """
        fooled = torch.zeros_like(self.survivors)
        for attack in attacks if len(rows) else ():
            fooled |= self.subject.attacked(attack, rows).success
        tried = self.survivors & torch.isin(self.subject.image_of, rows)
        more, left, count = (int(queries.sum()) for queries in (fooled & tried, self.survivors, self.attackable))
        closest = "" if int(tried.sum()) == left else f"{int(tried.sum())} closest of the "
        return more, count, f"{more} of the {closest}{left} that are left of {count} fall {name}"

    @property
    def eps(self) -> float:
        """Radius of the threat model; valid only where `no_radius` is None."""
        return float(self.threat.ball.eps)

    @property
    def eps_of_box(self) -> float:
        """Radius of a ball that holds the whole box [0,1], so every image."""
        return 1.0 if self.threat.norm == "linf" else float(self.subject.pixels**0.5)

    def no_search(self) -> str | None:
        """Reason why no check of the image part applies; None if all do."""
        if self.search is None:
            return "the attack leaves the images alone"
        if not bool(self.attackable.any()):
            return "no query of the sample that the attacker may edit is right when clean"
        if any(isinstance(layer, Surrogate | RetrievalSurrogate) for layer in layers(self.full_attack)):
            return "a transfer attack, which is computed on another model"
        return None

    def no_radius(self) -> str | None:
        """Reason why two radii cannot be compared; None if they can."""
        return self.no_search() or self.not_averaged() or self.no_eps()

    def no_eps(self) -> str | None:
        """Reason why the radius cannot be changed; None if it can."""
        if self.threat.radius is None:
            return "the attack has no radius: it looks for the smallest change"
        return "eps is 0" if self.threat.radius == 0 else None

    def not_averaged(self) -> str | None:
        """Reason why two runs cannot be compared (a randomised model without EOT); None if they can."""
        if self.subject.randomised and self.draws == 1:
            return "the model's answers are drawn, and the attack does not average them: see randomised"
        return None

    @property
    def minimum_norm(self) -> bool:
        """True of a minimum-norm search."""
        return self.search is not None and self.search.minimum_norm

    @property
    def ensemble(self) -> bool:
        """True of an attack that is made of several searches."""
        return any(isinstance(layer, ENSEMBLES) for layer in layers(self.full_attack))
