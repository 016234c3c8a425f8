"""The jobs of the study, each a `robustcli` command with a directory of its own, so that a stopped study goes on:
`python -m benchmarks.study [--out DIR] [--jobs N] [--worlds first,second] [--seeds 0,1,2] [--report]`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import Job, quoted, run, run_all
from benchmarks.study.arms import ARMS, AUGMENTATIONS, CLEAN_STEPS, EPS, FEW, SEEDS, WORLDS, slug


def clean_jobs(world: str) -> list[Job]:
    """The model that measures, which is not the one trained; and the start where the shipped weights know another
    world.
    """
    seeds = {"reference": 7} if world == "first" else {"reference": 7, "start": 0}
    steps = f"trainer.max_steps={CLEAN_STEPS}"
    return [
        Job(f"{world}/{name}", ["train-mat", "experiment=train_mat/tiny_clean", steps, f"seed={seed}", *WORLDS[world]])
        for name, seed in seeds.items()
    ]


def augmentation_jobs(world: str) -> list[Job]:
    """The directories that the arms mix in."""
    return [
        Job(f"{world}/augment/{slug(name)}", ["augment", *words, *FEW, *WORLDS[world]])
        for name, words in AUGMENTATIONS.items()
    ]


def quality_job(world: str, out: Path) -> Job:
    """The measures of all directories, and the prediction that stands before the first training."""
    named = ", ".join(f"{slug(name)}: {quoted(out / world / 'augment' / slug(name))}" for name in AUGMENTATIONS)
    reference = out / world / "reference" / "checkpoints" / "last.safetensors"
    words = [f"dataset.augmentations={{{named}}}", f"reference.checkpoint={reference}", *FEW, *WORLDS[world]]
    return Job(f"{world}/quality", ["augment-quality", *words])


def training_jobs(world: str, out: Path, seeds: Sequence[int]) -> list[Job]:
    """Every arm under every seed, seed by seed: a study that is stopped early has whole rows of few seeds."""
    start = [] if world == "first" else [f"checkpoint={out / world / 'start' / 'checkpoints' / 'last.safetensors'}"]
    jobs = []
    for seed in seeds:
        for name, arm in ARMS.items():
            places = ",".join(quoted(out / world / "augment" / slug(part)) for part in arm.augmentations)
            mixed = [f"dataset.augmentations=[{places}]"] if places else []
            number = [] if arm.number is None else [f"dataset.augmented_per_image={arm.number}"]
            checked = ["diagnostics=auto"] if seed == seeds[0] else []
            words = [
                "train-mat",
                "experiment=train_mat/mat_plus_scenes",
                f"seed={seed}",
                *checked,
                *start,
                *mixed,
                *number,
            ]
            jobs.append(Job(f"{world}/train/{slug(name)}/{seed}", [*words, f"threat.eps={EPS[world]}", *WORLDS[world]]))
    return jobs


def main() -> None:
    """Run what is not done yet, world by world, and write the report."""
    from benchmarks.study.report import write_report

    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/study"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--report", action="store_true", help="of what is done so far, without running anything")
    asked = parser.parse_args()
    out, worlds, seeds = asked.out.absolute(), asked.worlds.split(","), [int(seed) for seed in asked.seeds.split(",")]
    for world in [] if asked.report else worlds:
        run_all(clean_jobs(world), out, asked.jobs)
        run_all(augmentation_jobs(world), out, asked.jobs)
        run(quality_job(world, out), out)
        run_all(training_jobs(world, out, seeds), out, asked.jobs)
        write_report(out, worlds)
    write_report(out, worlds)


if __name__ == "__main__":
    main()
