"""An evaluation: models under a suite of attacks within one threat model, and over a curve of radii."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from robustcli.attacks import Attack, ClassifierAttack, ThreatModel
from robustcli.diagnostics import ConfigKeys
from robustcli.evaluation.access import Attacker, AttackRun, Entry, Group
from robustcli.evaluation.evaluator import Evaluator, Keep, Part

_POINTS = 10  # of a curve that is read off the norms that were found
Show = Callable[[str, int], None]  # name of a run, and images done


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pipeline for every model, task and defence: an evaluator, and what attacks the models on it.

    Attributes:
        evaluator: the images, with captions or classes.
        attacks: the suite by name.
        threat: what they may change, at the radius of the table.
        radii: of the curve, in units of [0,1] pixels.
        curve: name of the attack that draws it; None: every attack is run at every radius.
        attacker: what he has of the models.
        keys: where each attack stands in the config, for advice.
        resamples, seed: of the intervals.
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
        plan = {name: self._threats(name, attack) for name, attack in self.attacks.items()}
        return list(self.attacker.runs(group, plan))

    def main_run(self, name: str, entry: Entry) -> AttackRun:
        """The attack called ``name`` on ``entry`` by one who knows all of it, at the radius of the table."""
        alone = Group(bare=entry)
        found = self.attacker.runs(alone, {name: [(self.attacks[name], self._main(self.attacks[name]))]})
        return next(iter(found))

    def records(
        self, groups: Sequence[Group], *, keep: Keep | None = None, part: Part | None = None, show: Show | None = None
    ) -> pd.DataFrame:
        """One row a query, model, attack, access and radius; see `records`.

        Args:
            keep: is given what each run put out, chunk by chunk.
            part: keeps the result of a chunk, so that a killed run goes on at what is left.
            show: is told the name of the run at work and how many images are done with.
        """
        tables = []
        for group in groups:
            tables += [self.evaluator.clean(entry) for entry in group.entries]
            for run in self.runs(group):
                self.evaluator.on_chunk = _told(show, run)
                tables.append(self.evaluator.attacked(run, keep=keep, part=part))
        return pd.concat(tables, ignore_index=True)

    def norms(self, records: pd.DataFrame) -> tuple[float, ...]:
        """Radii of a curve that is read off the norms of what misled: 0 and their quantiles, up to the largest."""
        found = records.loc[(records["status"] == "fooled") & records["eps"].isna(), "norm"].dropna()
        quantiles = found.quantile([point / _POINTS for point in range(_POINTS + 1)]) if len(found) else found
        return tuple(sorted({0.0, *(math.ceil(1e6 * norm) / 1e6 for norm in quantiles)}))

    def smallest(self, name: str) -> bool:
        """Whether the attack looks for the smallest change."""
        attack = self.attacks[name]
        return isinstance(attack, ClassifierAttack) and attack.minimum_norm

    def _threats(self, name: str, attack: Attack) -> list[tuple[Attack, ThreatModel]]:
        """Whatever an attack is called with: one object, several threat models."""
        if self.smallest(name) or self.threat.radius is None:
            return [(attack, self._main(attack))]
        drawn = self.radii if self.curve in (None, name) else ()
        return [(attack, self.threat.at(eps)) for eps in sorted({self.threat.radius, *drawn})]

    def _main(self, attack: Attack) -> ThreatModel:
        """At the radius of the table; a smallest change is looked for once, and cut off at every radius."""
        if isinstance(attack, ClassifierAttack) and attack.minimum_norm and self.radii:
            return self.threat.at(None)
        return self.threat


def _told(show: Show | None, run: AttackRun) -> Callable[[int], None]:
    def told(images: int) -> None:
        if show is not None:
            show(f"{run.entries[0].label}: {run.name}", images)

    return told
