"""Access of an attacker to the deployed model, which decides the model that an attack computes on.

``static``: the model without its test-time defence, whose adversarial images are judged on every defence; ``transfer``:
a surrogate alone; ``bpda``: the defended model with the identity as gradient of its purifier (Athalye et al. 2018);
``shortened``: the defended model with a cleaner of fewer steps, which is cheaper and another model; only on request;
``adaptive``: the whole defended model, gradients of a randomised one averaged over draws (EOT). The verdict is always
that of the deployed model, on fresh draws.
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
from robustcli.attacks.core.threat import shown
from robustcli.evaluation.records import BARE

ACCESS = ("static", "bpda", "adaptive")
SHORTENED = "shortened"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Row of the table: a model as it is deployed.

    Attributes:
        label: its name in the table.
        model: the deployed model; with a test-time defence it has ``straight_through()``, a copy with the identity as
            gradient of the purifier.
        defence: name of its test-time defence; `BARE`: it has none.
        randomised: two passes over the same image differ.
    """

    label: str
    model: Any
    defence: str = BARE
    randomised: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """A bare model, and the same behind test-time defences."""

    bare: Entry
    defended: tuple[Entry, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, the bare model first."""
        return (self.bare, *self.defended)


@dataclass(frozen=True, kw_only=True)
class AttackRun:
    """Run of one attack with one access within one threat model.

    Attributes:
        name: of the attack in the table.
        attack: the search, wrapped for this access.
        threat: of the call.
        victim: the model that is attacked.
        entries: models that judge the result; several for ``static`` alone.
    """

    name: str
    attack: Any
    threat: ThreatModel
    access: str
    victim: Any
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """For a display: the first model that judges it, the attack, its access to a defence, and its radius."""
        first = self.entries[0]
        access = "" if first.defence == BARE else f", {self.access}"
        radius = "" if self.threat.radius is None else f", {shown(self.threat.radius, norm=self.threat.norm)}"
        return f"{first.label}: {self.name}{access}{radius}"

    @property
    def part(self) -> str:
        """Name of its cached parts, unique within an evaluation."""
        eps = "any" if self.threat.radius is None else f"{self.threat.radius:.9g}"
        return "/".join([self.access, self.name, eps, *(entry.label for entry in self.entries)])


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Attacker model of an evaluation: its kinds of access to the models.

    Attributes:
        access: of `ACCESS` and `SHORTENED`, those that are run against a test-time defence; a bare model is attacked
            with full access.
        eot: draws that are averaged for each gradient of a randomised model.
        chunk: images of a forward pass of such an average at most; None: any number.
        surrogate: the model that all attacks are computed on in place of the deployed one; None: no transfer.
        gallery: function from pairs to their gallery of the surrogate.
    """

    access: tuple[str, ...] = ACCESS
    eot: int = 1
    chunk: int | None = None
    surrogate: Any = None
    gallery: Any = None

    def runs(self, group: Group, attacks: Mapping[str, Sequence[tuple[Attack, ThreatModel]]]) -> Iterator[AttackRun]:
        """Runs of every attack at each of its threat models, with every kind of access to the models of ``group``."""
        for name, pairs in attacks.items():
            for attack, threat in pairs:
                yield from self._of_attack(group, name, attack, threat)

    def adaptive(self, attack: Attack, entry: Entry) -> Attack:
        """The attack wrapped in EOT where the model is randomised."""
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
        # Computed once on the bare model and judged on every defence; for the bare model it is the adaptive attack.
        yield run("static", attack, group.bare.model, *group.entries)
        for access in ("bpda", SHORTENED, "adaptive"):
            for entry in group.defended if access in self.access else ():
                victim = self._victim(access, entry)
                if victim is not None:
                    yield run(access, self.adaptive(attack, entry), victim, entry)

    def _victim(self, access: str, entry: Entry) -> Any:
        """What an attack with ``access`` computes on; None where the defence has no shorter form."""
        if access == SHORTENED:
            short = entry.model.shortened()
            return short if short is None else short.eval()
        return entry.model.straight_through() if access == "bpda" else entry.model

    def _transferred(self, attack: Attack) -> Attack:
        if isinstance(attack, RetrievalAttack):
            return RetrievalSurrogate(attack, self.surrogate, gallery=self.gallery)
        assert isinstance(attack, ClassifierAttack)
        return Surrogate(attack, self.surrogate)
