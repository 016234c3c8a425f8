"""What an evaluation will cost, before it runs: images x attacks x passes, and the time that timed passes of the very
models make of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from robustcli.attacks import RetrievalAttack, ThreatModel
from robustcli.attacks.adaptive.surrogate import RetrievalSurrogate, Surrogate, passes_for_transfer
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.evaluation.access import AttackRun, Entry, Group
from robustcli.evaluation.evaluation import Evaluation
from robustcli.evaluation.records import BARE
from robustcli.evaluation.timing import Timing, seconds_of
from robustcli.utils.progress import duration

# Passes with which the base class of an attack judges an image beside its search: of a classifier before and after it.
_JUDGED_CLASSES, _JUDGED_PAIRS = 2, 1


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """Forward and backward passes, in all, that the attacks take on a model, and the mean seconds of one."""

    passes: int
    pass_seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of an evaluation: totals over its images, runs of attacks and models.

    Attributes:
        images: that are judged; ``unit``: what they are, ``images`` or ``sentences``.
        models, attacks, runs: rows of the table, names of attacks, and their runs over models, accesses and radii.
        passes: forward and backward passes of images, and searches of captions.
        seconds: of all of them and of judging what comes out, at the speed that was timed.
        unknown: attacks that cannot tell their passes; they are in no total.
        by_run: seconds of one image in each run, by `AttackRun.part`.
        clean_seconds: those of ``seconds`` that are no attack's; one process alone takes them.
        by_model: what each model, by its label, is asked for by the attacks, and the seconds of a pass.
    """

    images: int
    models: int
    attacks: int
    runs: int
    passes: Passes
    seconds: float
    unknown: tuple[str, ...] = ()
    by_run: Mapping[str, float]
    clean_seconds: float = 0.0
    by_model: Mapping[str, "OfModel"] = field(default_factory=dict)
    unit: str = "images"

    def __str__(self) -> str:
        most = "at most " if self.passes.at_most else ""
        counts = {self.unit.removesuffix("s"): self.images, "model": self.models, "attack": self.attacks}
        work = " x ".join(_count(number, noun) for noun, number in counts.items())
        work += f" in {_count(self.runs, 'run')}" if self.runs != self.models * self.attacks else ""
        work += f", {most}{self.passes.forward:,} forward and {self.passes.backward:,} backward passes"
        if self.passes.searches:
            work += f" and {self.passes.searches:,} searches of captions"
        if self.unknown:
            work += f" (without {', '.join(self.unknown)}, which cannot tell)"
        return f"{work}: {most or 'about '}{duration(self.seconds)} by timed passes"

    def shared(self, ways: float) -> "Estimate":
        """The same where as many images are attacked at a time as ``ways``."""
        return replace(self, seconds=self.clean_seconds + (self.seconds - self.clean_seconds) / ways)

    def affordable(self, minutes: float) -> int:
        """The number of images that ``minutes`` pay for, of those that there are; 0: not for one."""
        whole = 60 * minutes * self.images / self.seconds if self.seconds else self.images
        return min(self.images, int(whole))


def estimate(evaluation: Evaluation, groups: Sequence[Group], *, times: int = 1) -> Estimate:
    """The cost of ``evaluation.records(groups)``, ``times`` over; it times a few passes of each model and changes
    nothing.
    """
    evaluator, speeds = evaluation.evaluator, _Speeds(evaluation)
    count, per_image = len(evaluator), evaluator.captions_per_image
    total, by_run, unknown, asked = Passes(), dict[str, float](), dict[str, None](), Counter[str]()
    entries = [entry for group in groups for entry in group.entries]
    seconds = sum(evaluator.draws(entry) * speeds.forward(entry.model) for entry in entries)
    seconds += sum(per_image * speeds.encode(entry.model) for entry in entries)
    forward = sum(evaluator.draws(entry) for entry in entries)
    runs = [run for group in groups for run in evaluation.runs(group)]
    for run in runs:
        spent = passes_of(run, evaluator.problem)
        if spent is None:
            unknown[run.name] = None
            spent = Passes()
        model = attacked_model(run)
        judged = _JUDGED_PAIRS if isinstance(run.attack, RetrievalAttack) else _JUDGED_CLASSES
        forward += judged
        own = (
            judged * speeds.forward(run.victim)
            + spent.forward * speeds.forward(model)
            + spent.backward * speeds.backward(model)
        )
        if spent.searches:
            own += spent.searches * per_image * speeds.search(model, run.attack)
        for entry in run.entries:  # the verdict: fresh draws of the image, and the caption once more
            own += evaluator.draws(entry) * speeds.forward(entry.model) + per_image * speeds.encode(entry.model)
            forward += evaluator.draws(entry)
            if run.access != "static" or entry.defence == BARE:  # else computed on the bare model
                asked[entry.label] += count * (spent.forward + spent.backward)
        total, by_run[run.part] = total + spent, own
    scale = times * count
    passes = Passes(
        forward=scale * (total.forward + forward),
        backward=scale * total.backward,
        searches=round(scale * total.searches * per_image),
        at_most=total.at_most,
    )
    return Estimate(
        images=count,
        models=times * len(entries),
        attacks=len(evaluation.attacks),
        runs=times * len(runs),
        passes=passes,
        seconds=scale * (seconds + sum(by_run.values())),
        clean_seconds=scale * seconds,
        by_model={
            entry.label: OfModel(passes=asked[entry.label], pass_seconds=speeds.of_pass(entry)) for entry in entries
        },
        unknown=tuple(unknown),
        by_run=by_run,
        unit=evaluator.unit,
    )


def passes_of(run: AttackRun, problem: Callable[[str, bool], Problem]) -> Passes | None:
    """Passes of a run for one image; sides that the threat model leaves as they are cost nothing."""
    asked = problem(run.threat.norm, run.entries[0].randomised and run.access != "static")
    spent: Passes | None
    spent = passes_for_transfer(run.attack, asked) if _static_on_classes(run) else run.attack.passes(asked)
    return spent and _of_sides(spent, run.threat)


def attacked_model(run: AttackRun) -> Any:
    """The model that the search of a run asks: a surrogate where there is one."""
    return run.attack.model if isinstance(run.attack, Surrogate | RetrievalSurrogate) else run.victim


def _static_on_classes(run: AttackRun) -> bool:
    return run.access == "static" and not isinstance(run.attack, RetrievalAttack)


def _of_sides(spent: Passes, threat: ThreatModel) -> Passes:
    images = spent if threat.moves_images else Passes(searches=spent.searches)
    return Passes(
        forward=images.forward,
        backward=images.backward,
        searches=spent.searches if threat.moves_texts else 0,
        at_most=spent.at_most,
    )


class _Speeds:
    """Seconds of a pass of one image, by model; each is timed once, when it is first asked for."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._known: dict[tuple[int, ...], float] = {}

    def of_pass(self, entry: Entry) -> float:
        """The mean of a forward and a backward pass; the forward alone where no attack moves images."""
        if not self._evaluation.threat.moves_images:
            return self.forward(entry.model)
        return (self.forward(entry.model) + self.backward(entry.model)) / 2

    def forward(self, model: Any) -> float:
        return self._timed(model, lambda timing: timing.forward(), 0)

    def backward(self, model: Any) -> float:
        return max(0.0, self._timed(model, lambda timing: timing.gradient(), 1) - self.forward(model))

    def encode(self, model: Any) -> float:
        """Seconds of one caption; 0 of a classifier."""
        return self._of_caption(model, lambda timing: timing.encode and timing.encode(), 2)

    def search(self, model: Any, attack: Any) -> float:
        """Seconds of a search of one caption."""
        return self._of_caption(model, lambda timing: timing.search and timing.search(attack.text), 3, id(attack.text))

    def _of_caption(self, model: Any, part: Callable[[Timing], object], *key: int) -> float:
        per_image = self._evaluation.evaluator.captions_per_image
        return self._timed(model, part, *key) / per_image if per_image else 0.0

    def _timed(self, model: Any, part: Callable[[Timing], object], *key: int) -> float:
        evaluator, threat = self._evaluation.evaluator, self._evaluation.threat
        name = (id(model), *key)
        if name not in self._known:
            most = min(evaluator.batch_size, len(evaluator))
            self._known[name] = seconds_of(
                model, lambda count: evaluator.timing(model, evaluator.image_rows[:count], threat), part, most
            )
        return self._known[name]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
