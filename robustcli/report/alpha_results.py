"""Results of `learn-alphas` in the run directory: how they were found, the alphas, records, figures and the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from robustcli.defenses.purification.alpha_images import AdversarialImages
from robustcli.defenses.purification.alpha_verdicts import ADAPTIVE, ADVERSARIAL
from robustcli.defenses.purification.alphas import schedule
from robustcli.metrics import Interval, bootstrap_difference, wilson
from robustcli.report.album import Album
from robustcli.report.alpha_findings import Informed, Searched
from robustcli.report.alphas import accuracy_grid, schedules
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.tables import print_grid
from robustcli.runs.run import Run
from robustcli.utils import files


@dataclass(frozen=True, kw_only=True)
class LearnedAlphas:
    """Alphas that were found, with their verdict on held-out images.

    Attributes:
        found: how.
        made: images that were made adversarial beforehand, by split.
        records: one row an image, kind of image and schedule, of the held-out split.
        split: the held-out one.
        attenuation: factor in [0,1] on every schedule.
        wanted: number of adversarial images asked for.
    """

    found: Searched | Informed
    made: Mapping[str, AdversarialImages]
    records: pd.DataFrame
    split: str
    attenuation: float
    wanted: int

    @property
    def hardest(self) -> str:
        """The kind of images that says most: attacked adaptively, where they are, else those made beforehand."""
        return ADAPTIVE if ADAPTIVE in set(self.records["kind"]) else ADVERSARIAL


def write_learned_alphas(run: Run, learned: LearnedAlphas, *, resamples: int, seed: int) -> float:
    """Write all results and print the table; returns the accuracy of the learned alphas on attacked held-out images,
    see `LearnedAlphas.hardest`.

    Args:
        resamples: of the bootstrap interval of the gain over cosine.
        seed: of the resampling.
    """
    found, kind = learned.found, learned.hardest
    with files.atomic(run.directory / found.file) as path:
        found.table().to_csv(path, index=False)
    accuracies = _accuracies(learned.records)
    gain = _gain(learned.records, kind, resamples, seed)
    run.write_records(learned.records)
    run.write_metrics(_flat(accuracies) | found.metrics | _named("learned_minus_cosine", gain), _table(accuracies))
    content = {
        "alphas": list(found.alphas),
        "attenuation": learned.attenuation,
        **found.content,
        "held_out": {name: interval.mean for name, interval in accuracies["learned"].items()},
    }
    files.write_json(run.directory / "alphas.json", content)
    grid = accuracy_grid(accuracies, learned.split)
    album = Album(run)
    found.draw(album)
    by_name = {
        "learned": found.alphas,
        **{name: schedule(name, len(found.alphas)).tolist() for name in ("linear", "cosine")},
    }
    caption = f"How much of each latent is drawn anew, times the attenuation of {learned.attenuation:g}."
    album.draw("schedules", caption, partial(schedules, by_name, attenuation=learned.attenuation))
    report = Report(
        title="Learned alphas",
        summary=_summary(learned, gain),
        threat=_threat(run, learned),
        tables=[grid, found.grid()],
        figures=album.pictures,
        caveats=[*map(literal, album.failures), *_caveats(learned, run)],
    )
    publish(run, report)
    print_grid(grid)
    if isinstance(found, Informed):
        print_grid(found.grid())
    for sentence in album.failures:
        print(sentence, flush=True)
    use = f"purifier.alphas={run.directory} purifier.attenuation={learned.attenuation:g}"
    print(f"to use them: {use}", flush=True)
    return float(accuracies["learned"][kind].mean or 0.0)


def _accuracies(records: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Schedule -> kind of image -> accuracy."""
    result: dict[str, dict[str, Interval]] = {}
    for (name, kind), part in records.groupby(["alphas", "kind"], sort=False):
        result.setdefault(str(name), {})[str(kind)] = wilson(int(part["right"].sum()), len(part))
    return result


def _gain(records: pd.DataFrame, kind: str, resamples: int, seed: int) -> Interval:
    """Accuracy of learned alphas minus cosine, paired over the same held-out images of ``kind``."""
    shown = records[records["kind"] == kind]
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


def _summary(learned: LearnedAlphas, gain: Interval) -> str:
    if gain.mean is None:
        return ""
    between = (
        "" if gain.low is None or gain.high is None else f" (95 %: {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    )
    adaptive = learned.hardest == ADAPTIVE
    which = "images attacked through the purifier" if adaptive else "adversarial images"
    how = (
        "each with an attack of its own"
        if adaptive
        else "by images that were made before, not by an attack on these alphas"
    )
    return (
        f"On {which} of the split {learned.split} the learned alphas differ from cosine by {100 * gain.mean:+.1f} "
        f"points{between}, {how}."
    )


def _settings(run: Run) -> Any:
    return files.read_yaml(run.directory / "config.yaml")


def _threat(run: Run, learned: LearnedAlphas) -> list[str]:
    settings = _settings(run)
    eps = settings["threat"]["eps"]
    made = "the reconstruction alone" if settings["purifier"]["alphas"] == "none" else "the defence as configured"
    static = (
        f"One FGSM step of L2 norm {eps} against {made}, every pixel by the same amount, pixels in [0, 1]; kept are "
        "the images that were right before and wrong after."
    )
    if learned.hardest != ADAPTIVE:
        return [static, "NOT ADAPTIVE: the attacker knows nothing of the alphas that are judged."]
    rule = settings["alphas"]
    return [
        f"Adaptive: PGD of {rule['steps']} steps within {eps} through the purifier with the alphas of its row, each "
        f"gradient the mean over {rule['draws']} answers. It tells alphas apart; a claim needs `robustcli purify`.",
        f"Adversarial: {static}",
    ]


def _caveats(learned: LearnedAlphas, run: Run) -> list[str]:
    notes = [
        *learned.found.caveats(),
        "What the alphas withstand is told by `robustcli purify purifier.alphas=DIRECTORY "
        f"purifier.attenuation={learned.attenuation:g}`.",
    ]
    if _settings(run)["purifier"]["alphas"] == "none":
        notes.append("The reconstruction scores 0 on the adversarial images by their choice.")
    for split, images in learned.made.items():
        notes.append(
            f"{split}: {images.attacked} images attacked, {images.clean_correct} were right before, "
            f"{len(images.rows)} are kept."
        )
        if len(images.rows) < learned.wanted:
            notes.append(f"{split} has fewer adversarial images than the {learned.wanted} that were asked for.")
    return notes
