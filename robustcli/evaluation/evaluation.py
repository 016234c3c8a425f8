"""Evaluation of models under a suite of attacks within one threat model, and over a curve of radii."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from robustcli.attacks import Attack, ClassifierAttack, ThreatModel
from robustcli.diagnostics import ConfigKeys
from robustcli.evaluation.access import Attacker, AttackRun, Entry, Group
from robustcli.evaluation.evaluator import Evaluator, Keep, Part

_POINTS = 10  # of a curve over quantiles of minimum norms
Show = Callable[[AttackRun, int], None]  # a run, and images done


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Pipeline for every model, task and defence: an evaluator, a suite of attacks, and the attacker's access.

    Attributes:
        evaluator: the images, with captions or classes.
        attacks: the suite, by name.
        threat: threat model of the table.
        radii: of the curve, in units of [0,1] pixels.
        curve: name of the attack that is run at the radii; None: all of them.
        attacker: its access to the models.
        keys: config keys of each attack, for the advice of diagnostics.
        resamples, seed: of the bootstrap intervals.
    """

    evaluator: Evaluator
    attacks: Mapping[str, Attack]
    threat: ThreatModel
    radii: tuple[float, ...] = ()
    curve: str | None = None
    attacker: Attacker = field(default_factory=Attacker)
    keys: Mapping[str, ConfigKeys] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0

    def runs(self, group: Group) -> list[AttackRun]:
        """All attack runs on the models of ``group``, in the order of the suite."""
        plan = {name: [(attack, threat) for threat in self.threats(name)] for name, attack in self.attacks.items()}
        return list(self.attacker.runs(group, plan))

    def main_run(self, name: str, entry: Entry) -> AttackRun:
        """Run of the attack ``name`` on ``entry`` with full access, within the threat model of the table."""
        attack = self.attacks[name]
        return next(self.attacker.runs(Group(bare=entry), {name: [(attack, self._main(attack))]}))

    def records(
        self, groups: Sequence[Group], *, keep: Keep | None = None, part: Part | None = None, show: Show | None = None
    ) -> pd.DataFrame:
        """One row a query, model, attack, access and radius; see `records`.

        Args:
            keep: receives the output of each attack, chunk by chunk.
            part: cache of the results of chunks, by which a killed run resumes.
            show: progress: receives the run and the number of images done.
        """
        tables = []
        for group in groups:
            tables += [self.evaluator.clean(entry) for entry in group.entries]
            for run in self.runs(group):
                self.evaluator.on_chunk = _progress(show, run)
                self.evaluator.on_chunk(0)  # shown from its beginning on
                tables.append(self.evaluator.attacked(run, keep=keep, part=part))
        return pd.concat(tables, ignore_index=True)

    def norms(self, records: pd.DataFrame) -> tuple[float, ...]:
        """Radii of a curve of minimum-norm attacks: 0 and quantiles of the norms that fooled, up to the largest."""
        norms = records.loc[(records["status"] == "fooled") & records["eps"].isna(), "norm"].dropna()
        quantiles = norms.quantile([point / _POINTS for point in range(_POINTS + 1)]) if len(norms) else norms
        # Rounded up, so that the attack whose norm is a quantile succeeds at that radius.
        return tuple(sorted({0.0, *(math.ceil(1e6 * norm) / 1e6 for norm in quantiles)}))

    def is_minimum_norm(self, name: str) -> bool:
        """True of a minimum-norm attack."""
        attack = self.attacks[name]
        return isinstance(attack, ClassifierAttack) and attack.minimum_norm

    def threats(self, name: str) -> list[ThreatModel]:
        """Threat models of the calls of an attack, that of the table and those of the curve, by ascending radius."""
        if self.is_minimum_norm(name) or self.threat.radius is None:
            return [self._main(self.attacks[name])]
        radii = self.radii if self.curve in (None, name) else ()
        return [self.threat.at(eps) for eps in sorted({self.threat.radius, *radii})]

    def _main(self, attack: Attack) -> ThreatModel:
        """Threat model of the table; without radius for a minimum-norm attack with a curve, which is run once and
        cut off at every radius afterwards.
        """
        if isinstance(attack, ClassifierAttack) and attack.minimum_norm and self.radii:
            return self.threat.at(None)
        return self.threat


def _progress(show: Show | None, run: AttackRun) -> Callable[[int], None]:
    def progress(images: int) -> None:
        if show is not None:
            show(run, images)

    return progress
