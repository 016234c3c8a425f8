"""Results of a search for alphas in the run directory: trials, learned alphas, records, figures and the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from robustcli.defenses.purification.alpha_images import AdversarialImages
from robustcli.defenses.purification.alpha_search import AlphaSearch, as_row
from robustcli.defenses.purification.alphas import schedule
from robustcli.metrics import Interval, bootstrap_difference, wilson
from robustcli.report.album import Album
from robustcli.report.alphas import accuracy_grid, pareto, schedules, search_history
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.run import Run
from robustcli.utils import files

ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class LearnedAlphas:
    """A finished search for alphas with its evaluation on held-out images.

    Attributes:
        search: with all its trials.
        objectives: names of the values of a trial, each an accuracy in [0,1].
        adversarial: adversarial and clean images, by split.
        records: one row an image, kind of image and schedule, of the held-out split.
        splits: that of the search, and the held-out one.
        attenuation: factor in [0,1] on every schedule.
        wanted: number of adversarial images asked for.
    """

    search: AlphaSearch
    objectives: tuple[str, ...]
    adversarial: Mapping[str, AdversarialImages]
    records: pd.DataFrame
    splits: tuple[str, str]
    attenuation: float
    wanted: int


def write_learned_alphas(run: Run, learned: LearnedAlphas, *, resamples: int, seed: int) -> float:
    """Write all results and print the table; returns the accuracy of the learned alphas on held-out adversarial images.

    Args:
        resamples: of the bootstrap interval of the gain over cosine.
        seed: of the resampling.
    """
    search, best = learned.search, learned.search.best()
    trials = _trials(learned)
    with files.atomic(run.directory / "trials.csv") as path:
        trials.to_csv(path, index=False)
    accuracies = _accuracies(learned.records)
    gain = _gain(learned.records, resamples, seed)
    run.write_records(learned.records)
    run.write_metrics(_flat(accuracies) | _searched(learned) | _named("learned_minus_cosine", gain), _table(accuracies))
    winner = search.trials[best]
    content = {
        "alphas": list(winner.alphas),
        "attenuation": learned.attenuation,
        "trial": best,
        "origin": winner.origin,
        "search": dict(zip(learned.objectives, winner.values, strict=True)),
        "held_out": {kind: interval.mean for kind, interval in accuracies["learned"].items()},
    }
    files.write_json(run.directory / "alphas.json", content)
    grid = accuracy_grid(accuracies, learned.splits[1])
    album = Album(run)
    _draw(album, learned, trials)
    report = Report(
        title="Learned alphas",
        summary=_summary(learned, gain),
        threat=_threat(run),
        tables=[grid, _search_grid(learned)],
        figures=album.pictures,
        caveats=[*map(literal, album.failures), *_caveats(learned, run)],
    )
    publish(run, report)
    print_grid(grid)
    for sentence in album.failures:
        print(sentence, flush=True)
    use = f"purifier.alphas={run.directory} purifier.attenuation={learned.attenuation:g}"
    print(f"to use them: {use}", flush=True)
    return float(accuracies["learned"][ADVERSARIAL].mean or 0.0)


def _trials(learned: LearnedAlphas) -> pd.DataFrame:
    rows = [as_row(trial, learned.objectives) for trial in learned.search.trials]
    frame = pd.DataFrame(rows)
    frame.insert(0, "trial", range(len(frame)))
    front = learned.search.front()
    frame["front"] = [number in front for number in range(len(frame))]
    frame["chosen"] = frame["trial"] == learned.search.best()
    for name in learned.objectives:
        count = _count(learned, name)
        bounds = [wilson(round(value * count), count) for value in frame[name]]
        frame[f"{name}_low"] = [bound.low for bound in bounds]
        frame[f"{name}_high"] = [bound.high for bound in bounds]
    return frame


def _count(learned: LearnedAlphas, objective: str) -> int:
    images = learned.adversarial[learned.splits[0]]
    return len(images.rows if objective == ADVERSARIAL else images.clean)


def _accuracies(records: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Schedule -> kind of image -> accuracy."""
    result: dict[str, dict[str, Interval]] = {}
    for (name, kind), part in records.groupby(["alphas", "kind"], sort=False):
        result.setdefault(str(name), {})[str(kind)] = wilson(int(part["right"].sum()), len(part))
    return result


def _gain(records: pd.DataFrame, resamples: int, seed: int) -> Interval:
    """Accuracy of learned alphas minus cosine, paired over the same held-out adversarial images."""
    shown = records[records["kind"] == ADVERSARIAL]
    first, second = (
        torch.tensor(shown.loc[shown["alphas"] == name, "right"].to_numpy()) for name in ("learned", "cosine")
    )
    return bootstrap_difference(first, second, torch.arange(len(first)), resamples=resamples, seed=seed)


def _named(key: str, interval: Interval) -> dict[str, float]:
    return {f"{key}{end}": value for end, value in _ends(interval).items() if value is not None}


def _ends(interval: Interval) -> dict[str, float | None]:
    return {"": interval.mean, "_low": interval.low, "_high": interval.high}


def _flat(accuracies: Mapping[str, Mapping[str, Interval]]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, kinds in accuracies.items():
        for kind, interval in kinds.items():
            flat |= _named(f"{name}/{kind}/accuracy", interval)
    return flat


def _table(accuracies: Mapping[str, Mapping[str, Interval]]) -> pd.DataFrame:
    rows = [
        {"alphas": name, "kind": kind, **{f"accuracy{end}": value for end, value in _ends(interval).items()}}
        for name, kinds in accuracies.items()
        for kind, interval in kinds.items()
    ]
    return pd.DataFrame(rows)


def _searched(learned: LearnedAlphas) -> dict[str, float]:
    best = learned.search.trials[learned.search.best()]
    return {
        "search/trials": float(len(learned.search.trials)),
        **{f"search/{name}": value for name, value in zip(learned.objectives, best.values, strict=True)},
    }


def _search_grid(learned: LearnedAlphas) -> Grid:
    """Accuracies of the initial schedules and of the best trial, on the images of the search."""
    trials, best = learned.search.trials, learned.search.best()
    shown = [number for number, trial in enumerate(trials) if trial.origin != learned.search.sampler or number == best]
    rows = [
        [
            str(number) + (" (chosen)" if number == best else ""),
            trials[number].origin,
            *(f"{100 * value:.1f}" for value in trials[number].values),
        ]
        for number in shown
    ]
    title = f"In the search itself, on the split {learned.splits[0]}: accuracy in percent"
    note = "The chosen one is the highest of all trials, chance included: the table above is the one to believe."
    return Grid(title, ["trial", "origin", *learned.objectives], rows, note)


def _draw(album: Album, learned: LearnedAlphas, trials: pd.DataFrame) -> None:
    if len(learned.objectives) == 2:
        caption = "Accuracy on adversarial images against that on clean ones, of every trial."
        album.draw("pareto", caption, partial(pareto, trials, learned.objectives))
    best = learned.search.trials[learned.search.best()].alphas
    by_name = {"learned": best, **{name: schedule(name, len(best)).tolist() for name in ("linear", "cosine")}}
    caption = f"How much of each latent is drawn anew, times the attenuation of {learned.attenuation:g}."
    album.draw("schedules", caption, partial(schedules, by_name, attenuation=learned.attenuation))
    caption = "History of the search: every trial, and the best up to then."
    album.draw("history", caption, partial(search_history, trials, learned.objectives))


def _summary(learned: LearnedAlphas, gain: Interval) -> str:
    if gain.mean is None:
        return ""
    between = (
        "" if gain.low is None or gain.high is None else f" (95 %: {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )
    return (
        f"On adversarial images of the split {learned.splits[1]} the learned alphas differ from cosine by "
        f"{100 * gain.mean:+.1f} points{between}, by images that were made before, not by an attack on these alphas."
    )


def _settings(run: Run) -> Any:
    return files.read_yaml(run.directory / "config.yaml")


def _threat(run: Run) -> list[str]:
    settings = _settings(run)
    made = "the reconstruction alone" if settings["purifier"]["alphas"] == "none" else "the defence as configured"
    return [
        f"One FGSM step of L2 norm {settings['threat']['eps']} against {made}, every pixel by the same amount, "
        "pixels in [0, 1]; kept are the images that were right before and wrong after.",
        "NOT ADAPTIVE: the attacker knows nothing of the alphas that are judged.",
    ]


def _caveats(learned: LearnedAlphas, run: Run) -> list[str]:
    notes = [
        "The objective is not adaptive: an attacker who knows the alphas makes other images. What they withstand then "
        f"is told by `robustcli purify purifier.alphas=DIRECTORY purifier.attenuation={learned.attenuation:g}`.",
        f"The winner is the highest of {len(learned.search.trials)} figures that each have an interval, so its figure "
        "in the search flatters; linear and cosine stand beside it as they are.",
        "Every trial has the same draws; the held-out table has others.",
    ]
    if _settings(run)["purifier"]["alphas"] == "none":
        notes.append("The reconstruction scores 0 on the adversarial images by their choice.")
    for split, images in learned.adversarial.items():
        notes.append(
            f"{split}: {images.attacked} images attacked, {images.clean_correct} were right before, "
            f"{len(images.rows)} are kept."
        )
        if len(images.rows) < learned.wanted:
            notes.append(f"{split} has fewer adversarial images than the {learned.wanted} that were asked for.")
    return notes
