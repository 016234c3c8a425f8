"""Access of an attacker: what he has of the model that is judged, and so which model he computes on.

``static``: the model without its test-time defence (what is found there is put to every defence); ``transfer``: another
model alone; ``bpda``: the defence, but the identity in place of its cleaner's gradient (Athalye et al. 2018);
``adaptive``: all of it, gradients averaged over draws where answers are drawn (EOT). Whatever an attack claims, the
verdict is that of the deployed model, on fresh draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustcli.attacks import (
    EOT,
    Attack,
    ClassifierAttack,
    RetrievalAttack,
    RetrievalEOT,
    RetrievalSurrogate,
    Surrogate,
    ThreatModel,
)
from robustcli.evaluation.records import BARE

ACCESS = ("static", "bpda", "adaptive")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table: a model as it is deployed.

    Attributes:
        label: what the table calls it.
        model: the deployed model; with a test-time defence it has ``straight_through()``, itself with the identity in
            place of the cleaner's gradient.
        defence: name of its test-time defence; `BARE`: it has none.
        randomised: two answers for the same image differ.
    """

    label: str
    model: Any
    defence: str = BARE
    randomised: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """A model alone, and the same behind test-time defences."""

    bare: Entry
    defended: tuple[Entry, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All rows of the table, the bare model first."""
        return (self.bare, *self.defended)


@dataclass(frozen=True, kw_only=True)
class AttackRun:
    """One attack with one access within one threat model.

    Attributes:
        name: of the attack in the table.
        attack: the search, as it computes for this access.
        threat: what it may change.
        victim: the model that it is called on.
        entries: whose verdict is taken of what comes out; several for ``static`` alone.
    """

    name: str
    attack: Any
    threat: ThreatModel
    access: str
    victim: Any
    entries: tuple[Entry, ...]

    @property
    def part(self) -> str:
        """A name for what is kept of it; no two runs of an evaluation share it."""
        eps = "any" if self.threat.radius is None else f"{self.threat.radius:.9g}"
        return "/".join([self.access, self.name, eps, *(entry.label for entry in self.entries)])


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """How the attacks of an evaluation see the models.

    Attributes:
        access: of `ACCESS`, what is tried on a model with a test-time defence; one without is open to all eyes.
        eot: draws, or answers, that are averaged for each gradient where a model draws.
        chunk: images of a forward pass of such an average at most; None: any.
        surrogate: the model on which everything is computed in place of the one that is judged; None: there is none.
        gallery: of pairs, as the surrogate sees it.
    """

    access: tuple[str, ...] = ACCESS
    eot: int = 1
    chunk: int | None = None
    surrogate: Any = None
    gallery: Any = None

    def runs(self, group: Group, attacks: Mapping[str, Sequence[tuple[Attack, ThreatModel]]]) -> Iterator[AttackRun]:
        """Every attack at each of its threat models, with every access that there is to the models of ``group``."""
        for name, pairs in attacks.items():
            for attack, threat in pairs:
                yield from self._of_attack(group, name, attack, threat)

    def adaptive(self, attack: Attack, entry: Entry) -> Attack:
        """The attack averaged over answers, where the model draws."""
        if not entry.randomised:
            return attack
        if isinstance(attack, RetrievalAttack):
            return RetrievalEOT(attack, draws=self.eot, chunk=self.chunk)
        assert isinstance(attack, ClassifierAttack)
        return EOT(attack, draws=self.eot, chunk=self.chunk)

    def _of_attack(self, group: Group, name: str, attack: Attack, threat: ThreatModel) -> Iterator[AttackRun]:
        def run(access: str, search: Attack, victim: Any, *entries: Entry) -> AttackRun:
            return AttackRun(name=name, attack=search, threat=threat, access=access, victim=victim, entries=entries)

        if self.surrogate is not None:
            for entry in group.entries:
                yield run("transfer", self._transferred(attack), entry.model, entry)
            return
        if not group.defended:
            yield run("adaptive", self.adaptive(attack, group.bare), group.bare.model, group.bare)
            return
        # Found once on the bare model, put to every defence; and to the bare model it is the adaptive attack.
        yield run("static", attack, group.bare.model, *group.entries)
        for access in ("bpda", "adaptive"):
            for entry in group.defended if access in self.access else ():
                victim = entry.model.straight_through() if access == "bpda" else entry.model
                yield run(access, self.adaptive(attack, entry), victim, entry)

    def _transferred(self, attack: Attack) -> Attack:
        if isinstance(attack, RetrievalAttack):
            return RetrievalSurrogate(attack, self.surrogate, gallery=self.gallery)
        assert isinstance(attack, ClassifierAttack)
        return Surrogate(attack, self.surrogate)
