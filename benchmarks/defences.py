"""The field's defences of a dual encoder, trained alike from the shipped weights: zero-shot and in retrieval, clean and
under attack.

`python -m benchmarks.defences [--out DIR] [--jobs N] [--seeds 0,1,2] [--steps 300] [--report]` goes on where it was.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.jobs import Job, quoted, run_all
from benchmarks.study.report import markdown
from robustcli.evaluation.aggregate import with_worst
from robustcli.report.figures import COLOURS, MARKERS, save
from robustcli.utils import files

Floats = NDArray[np.float64]
ATTRIBUTES = ("colour", "shape", "size", "place")
# A second name takes the weights of the first and trains the other tower: joined, both are as if trained apart.
DEFENCES: Mapping[str, Sequence[str]] = {
    "tecoa": ("tecoa",),
    "fare": ("fare",),
    "pmg_aft": ("pmg_aft",),
    "tga_zsr": ("tga_zsr",),
    "agft": ("agft",),
    "sim_clip": ("sim_clip",),
    "leaf_fare": ("leaf", "fare"),
    "image": ("image",),
    "mat": ("mat",),
}
SHIPPED = "before"
CHECKED = 0  # the seed whose judgement by the first attribute has diagnostics
IMAGES = 200
STEPS = 30  # of APGD on the cross-entropy, and towards each other class
RESAMPLES = 2000


def training_jobs(out: Path, seeds: Sequence[int], steps: int, part: int) -> list[Job]:
    """The first or the second (``part`` 0 or 1) training of every defence under every seed, seed by seed."""
    jobs = []
    for seed in seeds:
        for name, parts in DEFENCES.items():
            if part >= len(parts):
                continue
            start = [f"model.checkpoint={quoted(weights(out, name, seed, 0))}"] if part else []
            words = [
                "train-mat",
                f"defense={parts[part]}",
                "trainer=pairs",
                f"trainer.max_steps={steps}",
                f"seed={seed}",
            ]
            judged = ["attacks=none", "evaluation.before=false", "evaluation.limit=32", "trainer.eval_every=null"]
            jobs.append(Job(f"train/{name}/{part}/{seed}", [*words, *start, *judged]))
    return jobs


def judging_jobs(out: Path, seeds: Sequence[int]) -> list[Job]:
    """Zero-shot by each attribute, and retrieval, of all models of a seed."""
    jobs = []
    for seed in seeds:
        last = {name: weights(out, name, seed, len(parts) - 1) for name, parts in DEFENCES.items()}
        named = ", ".join([f"{SHIPPED}: shipped", *(f"{name}: {quoted(place)}" for name, place in last.items())])
        shared = [f"checkpoints={{{named}}}", f"evaluation.limit={IMAGES}", "evaluation.eps_curve=[]"]
        for attribute in ATTRIBUTES:
            words = [
                "evaluate",
                "dataset=scene_classes",
                f"dataset.attribute={attribute}",
                "model=tiny",
                "threat=image",
            ]
            attack = ["attacks=none", "+attack@attacks.apgd_ensemble=autoattack", "attacks.apgd_ensemble.version=apgd"]
            attack += [f"attacks.apgd_ensemble.steps={STEPS}"]
            # Diagnostics of one judgement: of ten models they cost more than the attacks.
            checked = f"diagnostics={'auto' if (attribute, seed) == (ATTRIBUTES[0], CHECKED) else 'off'}"
            jobs.append(Job(f"judge/{attribute}/{seed}", [*words, *attack, *shared, checked]))
        jobs.append(Job(f"judge/retrieval/{seed}", ["evaluate", "attacks=quick", *shared, "diagnostics=off"]))
    return jobs


def weights(out: Path, name: str, seed: int, part: int) -> Path:
    """File of the weights of a training."""
    return out / "train" / name / str(part) / str(seed) / "checkpoints" / "last.safetensors"


def read_hits(out: Path, judged: str) -> dict[str, tuple[Floats, Floats]]:
    """By model: right answers without attack and under the worst one, (S,I) each, shares of an image's queries."""
    found: dict[str, list[tuple[Floats, Floats]]] = {}
    for done in sorted((out / "judge" / judged).glob("*/DONE")):
        records = with_worst(pd.read_parquet(done.parent / "records.parquet"))
        single = records["attack"].nunique() == 2  # no "worst" beside a single attack
        for name, rows in records.groupby("model"):
            attacked = rows[rows["attack"] != "clean"] if single else rows[rows["attack"] == "worst"]
            found.setdefault(str(name), []).append((_hits(rows[rows["attack"] == "clean"]), _hits(attacked)))
    return {name: tuple(np.stack(side) for side in zip(*each, strict=True)) for name, each in found.items()}  # type: ignore[misc]


def _hits(rows: pd.DataFrame) -> Floats:
    """(I,): mean over directions of the share of the queries of each image that are answered rightly."""
    hit = (rows["adversarial_rank"].fillna(rows["clean_rank"]) <= 1).astype(float)
    table = rows.assign(hit=hit).pivot_table(index="image_id", columns="direction", values="hit", aggfunc="mean")
    return np.asarray(table.mean(axis=1).to_numpy(), dtype=float)


def interval(hits: Floats, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of (S,I) in percent, and its 95 % interval over seeds and images, both drawn with replacement."""
    draw = np.random.default_rng(seed)
    seeds, images = hits.shape
    means = [
        hits[draw.integers(seeds, size=seeds)][:, draw.integers(images, size=images)].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(hits.mean()), 100 * float(low), 100 * float(high)


def write_report(out: Path) -> None:
    """Write ``report.md``, ``defences.csv`` and the picture of what is done so far."""
    rows, seeds = [], {}
    for judged in (*ATTRIBUTES, "retrieval"):
        for name, sides in read_hits(out, judged).items():
            seeds[judged] = len(sides[0])
            for side, hits in zip(("clean", "attacked"), sides, strict=True):
                mean, low, high = interval(hits)
                rows.append({"judged": judged, "model": name, "side": side, "mean": mean, "low": low, "high": high})
    table = pd.DataFrame(rows)
    table.to_csv(out / "defences.csv", index=False)
    names = [name for name in (SHIPPED, *DEFENCES) if name in set(table["model"])]
    cells = table.assign(
        cell=[f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in table[["mean", "low", "high"]].to_numpy()]
    ).set_index(["model", "judged", "side"])["cell"]
    parts = ["# Defences of a dual encoder on scenes", ""]
    for side in ("clean", "attacked"):
        wide = pd.DataFrame({each: [cells.get((name, each, side), "") for name in names] for each in seeds})
        wide.insert(0, "model", names)
        parts += [f"## {side}", "", markdown(wide), ""]
    parts += [f"{max(seeds.values())} seeds, {IMAGES} images; percent, 95 % intervals over seeds and images.", ""]
    draw(table, names, out / "defences.png")
    parts += ["![clean against robust](defences.png)"]
    files.write_text(out / "report.md", "\n".join(parts) + "\n")
    print(f"report: {out / 'report.md'}", flush=True)


def draw(table: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    """One picture a judgement side by side: right under attack over right without, a mark a model."""
    judged = list(dict.fromkeys(table["judged"]))
    figure = Figure(figsize=(2.6 * len(judged), 3.6))
    for axes, each in zip(figure.subplots(1, len(judged), squeeze=False)[0], judged, strict=True):
        rows = table[table["judged"] == each].set_index(["model", "side"])
        for number, name in enumerate(names):
            clean, attacked = rows.loc[(name, "clean")], rows.loc[(name, "attacked")]
            axes.errorbar(
                clean["mean"],
                attacked["mean"],
                xerr=[[clean["mean"] - clean["low"]], [clean["high"] - clean["mean"]]],
                yerr=[[attacked["mean"] - attacked["low"]], [attacked["high"] - attacked["mean"]]],
                label=name,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                linestyle="none",
            )
        axes.set_title(each)
        axes.set_xlabel("clean (%)")
    figure.axes[0].set_ylabel("under attack (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=5, frameon=False, loc="lower center")
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    save(figure, path)


def main() -> None:
    """Run what is not done yet, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defences", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/defences"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--report", action="store_true", help="of what is done so far, without running anything")
    asked = parser.parse_args()
    out, seeds = asked.out.absolute(), [int(seed) for seed in asked.seeds.split(",")]
    for seed in [] if asked.report else seeds:
        for part in (0, 1):
            run_all(training_jobs(out, [seed], asked.steps, part), out, asked.jobs)
        run_all(judging_jobs(out, [seed]), out, asked.jobs)
    write_report(out)


if __name__ == "__main__":
    main()
