"""Black-box search for alphas: accuracy of a purified classifier over the cube [0,1]^L, point by point.

A proposal depends on the seed, its number and the results before it alone; so a search that was killed goes on at the
point that was left, and ends as if it had not been.

Shapes: L latents, N images, R draws.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from torch import Tensor

from robustcli.attacks import ClassifierAttack, ThreatModel
from robustcli.attacks.core.frozen import frozen
from robustcli.defenses import PurifiedClassifier, Purifier
from robustcli.defenses.purification.alphas import schedule
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

SAMPLERS = ("gp", "tpe", "random")
OBJECTIVES = ("adversarial", "clean")


@dataclass(frozen=True)
class Trial:
    """One point of the search.

    Attributes:
        origin: ``cosine``, ``linear``, ``half``, ``1 - linear`` or ``1 - cosine``, or the name of the sampler.
        alphas: (L,), before the attenuation.
        values: accuracies in [0,1], one an objective.
    """

    origin: str
    alphas: tuple[float, ...]
    values: tuple[float, ...]


def starting_points(count: int) -> dict[str, tuple[float, ...]]:
    """The paper's first five points for L = ``count``, in its order."""
    cosine, linear = schedule("cosine", count), schedule("linear", count)
    points = {
        "cosine": cosine,
        "linear": linear,
        "half": torch.full_like(cosine, 0.5),
        "1 - linear": 1 - linear,
        "1 - cosine": 1 - cosine,
    }
    return {name: tuple(point.clamp(0.0, 1.0).tolist()) for name, point in points.items()}


class AlphaSearch:
    """Black-box optimisation of one accuracy, or of the Pareto front of two, by ask and tell.

    Args:
        count: L.
        objectives: number of accuracies of a trial, 1 or 2.
        sampler: ``gp``, expected improvement under a Gaussian process (of the hypervolume where there are two);
            ``tpe``; or ``random``, which the paper calls grid search and which has no starting points.
        seed: of the run.

    Raises:
        UserError: an unknown sampler.
    """

    def __init__(self, count: int, *, objectives: int = 1, sampler: str = "gp", seed: int = 0) -> None:
        if sampler not in SAMPLERS:
            raise UserError(f"sampler is {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
        self.count, self.sampler, self.seed = count, sampler, seed
        self.trials: list[Trial] = []
        self._starts = {} if sampler == "random" else starting_points(count)
        self._space: dict[str, Any] = {f"alpha_{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(count)}
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it advises packages that would be faster
        self._study = optuna.create_study(directions=["maximize"] * objectives)

    def propose(self) -> tuple[str, tuple[float, ...]]:
        """Origin and alphas (L,) of the next trial; the same until `tell` adds a result."""
        number = len(self.trials)
        if number < len(self._starts):
            return list(self._starts.items())[number]
        self._study.sampler = self._sampler(derive_seed(self.seed, "learn alphas", number) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            asked = self._copy().ask(self._space)
        return self.sampler, tuple(asked.params[name] for name in self._space)

    def tell(self, trial: Trial) -> None:
        """Add a result, of this session or of one before."""
        params = dict(zip(self._space, trial.alphas, strict=True))
        self._study.add_trial(
            optuna.trial.create_trial(params=params, distributions=self._space, values=list(trial.values))
        )
        self.trials.append(trial)

    def front(self) -> list[int]:
        """Numbers of the trials of the Pareto front, which no other dominates; where several are equal, the first."""
        values = [trial.values for trial in self.trials]
        return [
            i
            for i, own in enumerate(values)
            if not any(_dominates(other, own, j < i) for j, other in enumerate(values))
        ]

    def best(self) -> int:
        """Number of the trial with the highest sum of its objectives; the first of several."""
        sums = [sum(trial.values) for trial in self.trials]
        return sums.index(max(sums))

    def _copy(self) -> optuna.Study:
        """The study as it is; asking leaves a running trial behind, which no later proposal shall see."""
        study = optuna.create_study(directions=self._study.directions, sampler=self._study.sampler)
        study.add_trials(self._study.get_trials(deepcopy=False))
        return study

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self.sampler:
                case "gp":
                    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=len(self._starts))
                case "tpe":
                    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(self._starts), multivariate=True)
        return optuna.samplers.RandomSampler(seed=seed)


def _dominates(other: Sequence[float], own: Sequence[float], earlier: bool) -> bool:
    no_worse = all(theirs >= ours for theirs, ours in zip(other, own, strict=True))
    return no_worse and (earlier or tuple(other) != tuple(own))


class AlphaEvaluator:
    """Accuracy of a purified classifier as a function of the alphas, under the same draws for each of them.

    The draws of an image are named by its place in the data set, so that neither batch nor order change a result, and
    two vectors of alphas differ by themselves alone.

    Args:
        defence: its classifier and its `Purifier`, whose alphas are replaced.
        draws: over which the logits are averaged.
        memory: GiB that a pass may take, see `FoldedDraws`.
        batch_size: images at once, at most.
        seed: names the draws.
    """

    def __init__(
        self, defence: PurifiedClassifier, *, draws: int, memory: float | None, batch_size: int, seed: int
    ) -> None:
        assert isinstance(defence.cleaner, Purifier)
        self.classifier, self.cleaner = defence.classifier, defence.cleaner
        self.draws, self.memory, self.seed = draws, memory, seed
        self.batch_size = batch_size

    @torch.no_grad()
    def correct(self, alphas: Sequence[float] | str, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """(N,) bool on the CPU: True where the mean over draws classifies the image right.

        Args:
            alphas: see `schedule`; before the attenuation.
            images: (N,C,H,W) in [0,1].
            labels, rows: (N,) long; rows name the draws.
        """
        defence, correct = self.defence(alphas), []
        with frozen(defence):
            for part in torch.split(torch.arange(len(images)), self.batch_size):
                # `FoldedDraws` takes the seed of its draws from the global generator: the same for every batch and for
                # all alphas. `frozen` puts the generator back.
                torch.manual_seed(self.seed)
                pixels = images[part].to(self.classifier.device)
                (logits,) = defence.answers(pixels, 1, names=rows[part].tolist())
                correct.append(logits.argmax(1).cpu() == labels[part])
        return torch.cat(correct)

    def attacked(
        self,
        attack: ClassifierAttack,
        threat: ThreatModel,
        alphas: Sequence[float] | str,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """(N,C,H,W) on the CPU: ``images`` after ``attack`` within ``threat``, through the purifier with ``alphas``.

        Args:
            images, labels, rows: see `correct`; rows name the draws of the attack, not those of the verdict.
        """
        defence, found = self.defence(alphas), []
        for part in torch.split(torch.arange(len(images)), self.batch_size):
            pixels, truth = images[part].to(self.classifier.device), labels[part].to(self.classifier.device)
            found.append(attack(defence, pixels, truth, threat, sample_ids=rows[part]).images.cpu())
        return torch.cat(found)

    def defence(self, alphas: Sequence[float] | str) -> PurifiedClassifier:
        """The classifier behind the purifier with ``alphas``."""
        base = self.cleaner
        cleaner = Purifier(
            base.generator,
            alphas=alphas,
            attenuation=base.attenuation,
            preprocess=base.preprocess,
            checkpoint=base.checkpoint,
        )
        cleaner = cleaner.to(self.classifier.device)
        return PurifiedClassifier(self.classifier, cleaner, draws=self.draws, memory=self.memory).eval()


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The objectives as they are; `UserError` for an unknown or repeated one, or none."""
    if not names or len(set(names)) != len(names) or set(names) - set(OBJECTIVES):
        raise UserError(
            f"objectives is {list(names)}: give [adversarial], or [adversarial,clean] for the front of both."
        )
    return tuple(names)


def as_row(trial: Trial, names: Sequence[str]) -> Mapping[str, Any]:
    """A row of ``trials.csv``."""
    return {
        "origin": trial.origin,
        **dict(zip(names, trial.values, strict=True)),
        **{f"alpha_{i}": alpha for i, alpha in enumerate(trial.alphas)},
    }
