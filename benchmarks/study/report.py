"""The report of the study: recall by arm, gain over no augmentation, and how well the measures told it before.

Shapes: A arms, S seeds, I images, R resamples.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.study.arms import ARMS, CURVES, slug
from robustcli.evaluation.aggregate import with_worst
from robustcli.report.figures import save
from robustcli.utils import files

Floats = NDArray[np.float64]
RESAMPLES = 2000
MEASURES = ("alignment_ratio", "percentile", "diversity_ratio", "diversity_among", "gap", "mmd")
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class World:
    """Right answers of a world: ``hits[arm]`` (S,2,I), shares of an image's queries in both directions."""

    hits: Mapping[str, Floats]
    attack: str

    def recall(self, arm: str) -> Floats:
        """(S,2) recall@1 in percent by seed and direction."""
        return 100 * self.hits[arm].mean(2)


def read_world(out: Path, world: str, attack: str) -> World:
    """Answers of the arms whose trainings are done under every seed that any arm has.

    Args:
        attack: as in the records, ``clean`` or ``worst``.
    """
    found: dict[str, dict[str, Floats]] = {}
    for name in ARMS:
        for place in sorted((out / world / "train" / slug(name)).glob("*/DONE")):
            found.setdefault(name, {})[place.parent.name] = _hits(place.parent, attack)
    seeds = sorted({seed for arm in found.values() for seed in arm})
    whole = {name: np.stack([arm[seed] for seed in seeds]) for name, arm in found.items() if list(arm) == seeds}
    return World(whole, attack)


def _hits(place: Path, attack: str) -> Floats:
    """(2,I): the share of the queries of each image that are answered rightly; every image has as many queries."""
    records = with_worst(pd.read_parquet(place / "records.parquet"))
    rows = records[records["attack"] == attack]
    hit = (rows["adversarial_rank"].fillna(rows["clean_rank"]) <= 1).astype(float)
    table = rows.assign(hit=hit).pivot_table(index="direction", columns="image_id", values="hit", aggfunc="mean")
    return np.asarray(table.loc[list(DIRECTIONS)].to_numpy(), dtype=float)


def gains(world: World, arms: Sequence[str], *, seed: int = 0) -> tuple[Floats, Floats]:
    """Gain of each arm over ``none`` in points, mean of both directions: (A,), and its resamples (R,A).

    Resampled are the seeds and the images, both with replacement, the same for all arms.
    """
    difference = np.stack([100 * (world.hits[arm] - world.hits["none"]).mean(1) for arm in arms])  # (A,S,I)
    draw = np.random.default_rng(seed)
    _, seeds, images = difference.shape
    resamples = np.empty((RESAMPLES, len(arms)))
    for row in range(RESAMPLES):
        part = difference[:, draw.integers(seeds, size=seeds)][:, :, draw.integers(images, size=images)]
        resamples[row] = part.mean((1, 2))
    return difference.mean((1, 2)), resamples


def correlations(measures: pd.DataFrame, gain: Floats, resamples: Floats) -> pd.DataFrame:
    """Spearman's rank correlation of each measure with the gain, and its 95 % interval over ``resamples``."""
    rows = []
    for name in measures.columns:
        values = measures[name].to_numpy(dtype=float)
        if np.isnan(values).any() or len(set(values)) < 3:
            continue
        each = [spearmanr(values, one).statistic for one in resamples]
        low, high = np.nanpercentile(each, [2.5, 97.5])
        rows.append((name, spearmanr(values, gain).statistic, low, high))
    return pd.DataFrame(rows, columns=["measure", "rank correlation", "low", "high"])


def write_report(out: Path, worlds: Sequence[str]) -> None:
    """Write ``report.md``, ``arms.csv`` and the pictures of what is done so far."""
    parts = ["# One-to-many augmentation of MAT on scenes", ""]
    for name in worlds:
        world = read_world(out, name, "worst")
        if "none" in world.hits and len(world.hits) > 1:
            parts += _world(out, name, world)
    files.write_text(out / "report.md", "\n".join(parts) + "\n")
    print(f"report: {out / 'report.md'}", flush=True)


def _world(out: Path, name: str, world: World) -> list[str]:
    clean = read_world(out, name, "clean")
    arms = [arm for arm in world.hits if arm != "none"]
    gain, resamples = gains(world, arms)
    low, high = np.percentile(resamples, [2.5, 97.5], axis=0)
    table = pd.DataFrame({"arm": list(world.hits)})
    for label, seen in (("clean", clean), ("worst", world)):
        table[label] = [" / ".join(f"{value:.1f}" for value in seen.recall(arm).mean(0)) for arm in world.hits]
    shown = {arm: f"{g:+.1f} [{a:+.1f}, {b:+.1f}]" for arm, g, a, b in zip(arms, gain, low, high, strict=True)}
    table["gain"] = [shown.get(arm, "") for arm in world.hits]
    table["diagnostics"] = [_verdict(out, name, arm) for arm in world.hits]
    table.to_csv(out / f"arms_{name}.csv", index=False)
    seeds = next(iter(world.hits.values())).shape[0]
    parts = [
        f"## World {name}",
        "",
        f"{seeds} seeds. Recall@1 in percent, image to text / text to image; worst: the query's worst of all attacks. "
        "Gain: worst, mean of both directions, in points over no augmentation, with the 95 % interval over seeds and "
        "images.",
        "",
        markdown(table),
        "",
    ]
    curves(world, gain, resamples, arms, out / f"curves_{name}.png")
    parts += [f"![three curves](curves_{name}.png)", ""]
    return parts + _measured(out, name, arms, gain, resamples)


def _measured(out: Path, name: str, arms: Sequence[str], gain: Floats, resamples: Floats) -> list[str]:
    """The rank correlations, and what became of the prediction."""
    place = out / name / "quality"
    if not (place / "DONE").exists():
        return []
    quality = pd.read_csv(place / "metrics.csv")
    labels = [label for label in quality["augmentation"] if _arm(label) in arms]
    if len(labels) < 3:  # of an unfinished study
        return []
    chosen = [arms.index(_arm(label)) for label in labels]
    measures = quality.set_index("augmentation").loc[labels, list(MEASURES)]
    table = correlations(measures, gain[chosen], resamples[:, chosen])
    prediction = json.loads((place / "prediction.json").read_text())
    manifest = files.read_json(place / "manifest.json")
    first = min(
        files.read_json(each / "manifest.json")["start"] for each in (out / name / "train").glob("*/*") if each.is_dir()
    )
    rows = [
        (
            entry["augmentation"],
            "gains" if entry["gain"] else "does not",
            f"{gain[arms.index(_arm(entry['augmentation']))]:+.1f}",
            "gains" if np.percentile(resamples[:, arms.index(_arm(entry["augmentation"]))], 2.5) > 0 else "does not",
        )
        for entry in prediction["order"]
        if _arm(entry["augmentation"]) in arms
    ]
    told = pd.DataFrame(rows, columns=["augmentation", "predicted", "gain", "measured"])
    right = int((told["predicted"] == told["measured"]).sum())
    order = [
        arms.index(_arm(entry["augmentation"])) for entry in prediction["order"] if _arm(entry["augmentation"]) in arms
    ]
    ranks = -np.arange(len(order))
    each = [spearmanr(ranks, one[order]).statistic for one in resamples]
    bounds = np.percentile(each, [2.5, 97.5])
    of_order = spearmanr(ranks, gain[order]).statistic
    return [
        f"Rank correlation of each measure with the gain over {len(labels)} augmentations:",
        "",
        markdown(table.round(2)),
        "",
        f"Prediction, written {manifest['end']}, before the first training ({first}): {right} of {len(told)} right; "
        f"rank correlation of its order with the gain {of_order:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}].",
        "",
        markdown(told),
        "",
    ]


def _arm(augmentation: str) -> str:
    """The arm that trains with all of one augmentation, which the measures call by the name of its folder."""
    return "captions 5" if augmentation == "captions" else {slug(name): name for name in ARMS}[augmentation]


def _verdict(out: Path, world: str, arm: str) -> str:
    """Verdict of the diagnostics on an arm, of the seeds that were checked."""
    checked = sorted((out / world / "train" / slug(arm)).glob("*/diagnostics.csv"))
    suspect = sum(bool((pd.read_csv(each)["status"] == "suspect").any()) for each in checked)
    return f"suspect in {suspect} of {len(checked)}" if suspect else "ok" if checked else ""


def curves(world: World, gain: Floats, resamples: Floats, arms: Sequence[str], path: Path) -> None:
    """Three pictures side by side: recall over the dose of what helps, of what is wrong, of what is foreign."""
    drawn = {title: [arm for arm in names if arm in world.hits] for title, names in CURVES.items()}
    figure = Figure(figsize=(10, 3.2))
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    spread = {"none": (0.0, 0.0, 0.0)} | {
        arm: (g, *np.percentile(resamples[:, row], [2.5, 97.5]))
        for row, (arm, g) in enumerate(zip(arms, gain, strict=True))
    }
    for place, (title, names) in zip(axes, drawn.items(), strict=True):
        middle, low, high = (np.array([spread[name][k] for name in names]) for k in range(3))
        place.errorbar(range(len(names)), middle, [middle - low, high - middle], marker="o", capsize=3)
        place.axhline(0, linewidth=0.8, color="0.6")
        place.set_xticks(
            range(len(names)), [name.split(" ", 1)[-1] if " " in name else name for name in names], fontsize=8
        )
        place.set_title(title, fontsize=9)
    axes[0].set_ylabel("gain over no augmentation (points)")
    figure.tight_layout()
    save(figure, path)


def markdown(table: pd.DataFrame) -> str:
    """The table with pipes."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)
