"""Base class of attacks on classifiers that wrap another one."""

from dataclasses import dataclass, field

from robustcli.attacks.core.base import ClassifierAttack
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.numbers import Number


@dataclass(frozen=True, kw_only=True)
class WrappedAttack(ClassifierAttack):
    """Attack that runs another one on a changed model; threat model, audit and seed are those of the inner attack.

    Args:
        attack: the inner attack.
    """

    attack: ClassifierAttack = field(kw_only=False)
    norm: str = field(init=False, repr=False)
    eps: Number | None = field(init=False, repr=False)
    seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._store(norm=self.attack.norm, eps=self.attack.eps, seed=self.attack.seed)

    @property
    def threat(self) -> ThreatModel:
        return self.attack.threat

    def check(self, threat: ThreatModel) -> None:
        self.attack.check(threat)

    def passes(self, problem: Problem) -> Passes | None:
        return self.attack.passes(problem)

    @property
    def baseline(self) -> bool:
        return self.attack.baseline

    @property
    def minimum_norm(self) -> bool:
        return self.attack.minimum_norm
