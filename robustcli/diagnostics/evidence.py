"""What several checks look at: one attack on one sample, its parts, and the runs that they share.

Shapes: Q queries that count, N queries in all.
"""

from collections.abc import Mapping
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
)
from robustcli.diagnostics.advice import Advice, ConfigKeys
from robustcli.diagnostics.changes import AnyAttack, image_search, layers, one_side
from robustcli.diagnostics.subjects import Outcome, Subject

ENSEMBLES = (AutoAttack, RetrievalAutoAttack)


class Evidence:
    """An attack on a subject. The image part is looked at with captions clean, the text part with images clean.

    Args:
        subject, attack: what the number stands for.
        sources: other models by name, that adversarial images may come from.
        queries: forward passes of a black-box search.
        keys: where the attack stands in the config, for the advice.

    Attributes:
        threat: what may change, that of the subject.
        attack: the image part; None of an attack on captions alone. text: the text part, or None.
        search: the innermost search of images.
        advice: what to do about each flaw.
    """

    def __init__(
        self, subject: Subject, attack: AnyAttack, *, sources: Mapping[str, Any], queries: int, keys: ConfigKeys
    ) -> None:
        self.subject, self.sources, self.queries, self.threat = subject, sources, queries, subject.threat
        self.given = attack
        self.attack = one_side(attack, "image") if self.threat.moves_images else None
        self.text = one_side(attack, "text") if self.threat.moves_texts else None
        self.search: ClassifierAttack | None = None if self.attack is None else image_search(self.attack)
        self.reached = subject.reached("image")
        ensemble = "retrieval_autoattack" if isinstance(attack, RetrievalAttack) else "autoattack"
        self.advice = Advice(keys=keys, ensemble=ensemble, search=self.search)

    @cached_property
    def draws(self) -> int:
        """Over how many draws of the model the attack averages; 1 where it does not."""
        for layer in layers(self.given):
            if isinstance(layer, EOT | RetrievalEOT):
                return layer.draws
            if isinstance(layer, AutoAttack) and layer.version == "rand":
                return 20
        return 1

    @cached_property
    def outcome(self) -> Outcome:
        """Of the image part as it is."""
        assert self.attack is not None
        return self.subject.attacked(self.attack)

    @property
    def success(self) -> Tensor:
        """(Q,) bool, of the image part as it is."""
        return self.outcome.success[self.reached]

    def successes(self, attack: AnyAttack, threat: ThreatModel) -> Tensor:
        """(Q,) bool, of another image part within another threat model."""
        return self.subject.attacked(attack, threat=threat).success[self.reached]

    @cached_property
    def standing(self) -> Tensor:
        """(N,) bool: the queries that the image part could reach and leaves right."""
        return self.reached & ~self.outcome.success

    def images_of(self, queries: Tensor) -> Tensor:
        """Rows of the images that ``queries`` (N,) bool belong to."""
        rows: Tensor = torch.unique(self.subject.image_of[queries])
        return rows

    def more(self, *attacks: AnyAttack) -> tuple[int, int, int]:
        """Queries that fall to ``attacks`` though they stand, those that stand, and all that count."""
        rows, fallen = self.images_of(self.standing), torch.zeros_like(self.standing)
        for attack in attacks if len(rows) else ():
            fallen |= self.subject.attacked(attack, rows).success
        return int((fallen & self.standing).sum()), int(self.standing.sum()), int(self.reached.sum())

    @property
    def eps(self) -> float:
        """The radius; only where `no_radius` has no objection."""
        return float(self.threat.ball.eps)

    @property
    def whole(self) -> float:
        """The eps of a ball that holds every image."""
        return 1.0 if self.threat.norm == "linf" else float(self.subject.pixels**0.5)

    def no_search(self) -> str | None:
        """Why nothing can be said of images, if so."""
        if self.search is None:
            return "the attack leaves the images alone"
        if not bool(self.reached.any()):
            return "no query of the sample that the attacker may edit is right when clean"
        if any(isinstance(layer, Surrogate | RetrievalSurrogate) for layer in layers(self.given)):
            return "a transfer attack, which is computed on another model"
        return None

    def no_radius(self) -> str | None:
        """Why two radii cannot be compared, if so."""
        return self.no_search() or self.drawn() or self.no_eps()

    def no_eps(self) -> str | None:
        """Why the radius cannot be changed, if so."""
        if self.threat.radius is None:
            return "the attack has no radius: it looks for the smallest change"
        return "eps is 0" if self.threat.radius == 0 else None

    def drawn(self) -> str | None:
        """Why two runs cannot be compared, if so."""
        if self.subject.randomised and self.draws == 1:
            return "the model's answers are drawn, and the attack does not average them: see randomised"
        return None

    @property
    def minimum_norm(self) -> bool:
        """Whether the search looks for the smallest change."""
        return self.search is not None and self.search.minimum_norm

    @property
    def ensemble(self) -> bool:
        """Whether the attack is made of several searches."""
        return any(isinstance(layer, ENSEMBLES) for layer in layers(self.given))
