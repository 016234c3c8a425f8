"""How alphas were found, for tables, pictures and the file that is written: by a search, or by what latents tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from robustcli.defenses.purification.alpha_information import Information
from robustcli.defenses.purification.alpha_search import AlphaSearch, as_row
from robustcli.defenses.purification.alpha_verdicts import ADAPTIVE
from robustcli.metrics import wilson
from robustcli.report.album import Album
from robustcli.report.alphas import information, pareto, search_history
from robustcli.report.tables import Grid


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        search: with all its trials.
        objectives: names of the values of a trial, each an accuracy in [0,1].
        counts: images of each objective.
        split: of those images.
    """

    search: AlphaSearch
    objectives: tuple[str, ...]
    counts: Mapping[str, int]
    split: str

    file = "trials.csv"

    @property
    def alphas(self) -> tuple[float, ...]:
        """Those of the best trial, before the attenuation."""
        return self.search.trials[self.search.best()].alphas

    @property
    def content(self) -> dict[str, Any]:
        """What ``alphas.json`` says of them."""
        best = self.search.best()
        trial = self.search.trials[best]
        found = dict(zip(self.objectives, trial.values, strict=True))
        return {"trial": best, "origin": trial.origin, "search": found}

    @property
    def metrics(self) -> dict[str, float]:
        """Number of trials, and the values of the best."""
        found = {f"search/{name}": float(value) for name, value in self.content["search"].items()}
        return {"search/trials": float(len(self.search.trials)), **found}

    def table(self) -> pd.DataFrame:
        """One row a trial: its alphas, values and their intervals, and whether it is of the front and the chosen."""
        frame = pd.DataFrame([as_row(trial, self.objectives) for trial in self.search.trials])
        frame.insert(0, "trial", range(len(frame)))
        front = self.search.front()
        frame["front"] = [number in front for number in range(len(frame))]
        frame["chosen"] = frame["trial"] == self.search.best()
        for name in self.objectives:
            bounds = [wilson(round(value * self.counts[name]), self.counts[name]) for value in frame[name]]
            frame[f"{name}_low"] = [bound.low for bound in bounds]
            frame[f"{name}_high"] = [bound.high for bound in bounds]
        return frame

    def grid(self) -> Grid:
        """Accuracies of the initial schedules and of the best trial, on the images of the search."""
        trials, best = self.search.trials, self.search.best()
        shown = [number for number, trial in enumerate(trials) if trial.origin != self.search.sampler or number == best]
        rows = [
            [
                str(number) + (" (chosen)" if number == best else ""),
                trials[number].origin,
                *(f"{100 * value:.1f}" for value in trials[number].values),
            ]
            for number in shown
        ]
        title = f"In the search itself, on the split {self.split}: accuracy in percent"
        note = "The chosen one is the highest of all trials, chance included: the table above is the one to believe."
        return Grid(title, ["trial", "origin", *self.objectives], rows, note)

    def draw(self, album: Album) -> None:
        """The front of two objectives, and the history."""
        trials = self.table()
        if len(self.objectives) == 2:
            caption = "Accuracy on attacked images against that on clean ones, of every trial."
            album.draw("pareto", caption, partial(pareto, trials, self.objectives))
        caption = "History of the search: every trial, and the best up to then."
        album.draw("history", caption, partial(search_history, trials, self.objectives))

    def caveats(self) -> list[str]:
        """Limits of the search."""
        notes = [
            f"The winner is the highest of {len(self.search.trials)} figures that each have an interval, so its figure "
            "in the search flatters; linear and cosine stand beside it as they are.",
            "Every trial has the same draws; the held-out table has others.",
        ]
        if ADAPTIVE not in self.objectives:
            notes.append("The objective is not adaptive: an attacker who knows the alphas makes other images.")
        return notes


@dataclass(frozen=True)
class Informed:
    """What each latent tells of the class, from which the alphas follow.

    Attributes:
        information: by latent.
        split: of the images of the probes.
        given: ``coarser`` or ``nothing``, see `InformativeAlphas`.
    """

    information: Information
    split: str
    given: str

    file = "latents.csv"

    @property
    def alphas(self) -> tuple[float, ...]:
        """``1 - I / max I``, before the attenuation."""
        return self.information.alphas

    @property
    def content(self) -> dict[str, Any]:
        """What ``alphas.json`` says of them."""
        found = self.information
        return {"origin": "mutual information", "nats": list(found.mean), "entropy": found.entropy}

    @property
    def metrics(self) -> dict[str, float]:
        """The bound of each latent, and the entropy of the class."""
        nats = {f"latents/{number}/nats": value for number, value in enumerate(self.information.mean, start=1)}
        return {"entropy": self.information.entropy, **nats}

    def table(self) -> pd.DataFrame:
        """One row a latent, see `Information.table`."""
        return self.information.table()

    def grid(self) -> Grid:
        """The bound of each latent with its interval, and the alpha that follows."""
        told = self.information
        bounds = zip(told.mean, told.high, told.alphas, strict=True)
        rows = [
            [str(number), f"{mean:.2f}\n±{high - mean:.2f}", f"{mean / told.entropy:.2f}", f"{alpha:.2f}"]
            for number, (mean, high, alpha) in enumerate(bounds, start=1)
        ]
        title = f"{self._what}, on the split {self.split}"
        note = f"In nats, by cross-validated linear probes; the class has {self.information.entropy:.2f}."
        return Grid(title, ["latent, coarse to fine", "nats", "of the class", "alpha"], rows, note)

    def draw(self, album: Album) -> None:
        """The information over the latents."""
        caption = f"{self._what}, by cross-validated linear probes."
        album.draw("information", caption, partial(information, self.table()))

    @property
    def _what(self) -> str:
        beyond = " beyond the coarser ones" if self.given == "coarser" else " by itself, at least"
        return f"What each latent tells of the class{beyond}"

    def caveats(self) -> list[str]:
        """Limits of the probes."""
        kind = "a difference of two lower bounds, and no bound" if self.given == "coarser" else "a lower bound"
        return [
            f"What a latent tells is {kind}: a linear probe reads what is easily read.",
            "An attacker may move a latent although it tells the class, or because it does: the rule knows no attack.",
        ]
