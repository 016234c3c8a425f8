"""The report of the study of one-to-many augmentation, on records whose gains are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.study.__main__ import augmentation_jobs, clean_jobs, quality_job, training_jobs
from benchmarks.study.arms import ARMS, AUGMENTATIONS, CURVES, WORLDS, slug
from benchmarks.study.report import World, correlations, gains, read_world
from robustcli.config import checks
from robustcli.config.compose import compose


def test_the_gain_is_that_of_the_worst_recall_and_its_interval_covers_it() -> None:
    draw = np.random.default_rng(0)
    base = (draw.random((3, 2, 200)) < 0.3).astype(float)
    better = np.maximum(base, (draw.random((3, 2, 200)) < 0.2).astype(float))
    gain, resamples = gains(World({"none": base, "same": base, "better": better}, "worst"), ["same", "better"])
    assert gain[0] == 0 and np.all(resamples[:, 0] == 0), "paired: an arm that answers the same has no interval at all"
    assert gain[1] == pytest.approx(100 * (better.mean() - base.mean()))
    low, high = np.percentile(resamples[:, 1], [2.5, 97.5])
    assert 5 < low < gain[1] < high < 25


def test_the_rank_correlation_is_spearmans() -> None:
    gain = np.array([3.0, 1.0, 2.0, 0.0])
    measures = pd.DataFrame({"up": [9.0, 5.0, 6.0, 1.0], "down": [-9.0, -5.0, -6.0, -1.0], "flat": [1.0] * 4})
    table = correlations(measures, gain, np.stack([gain, gain + 0.1])).set_index("measure")
    assert list(table.index) == ["up", "down"], "of a constant there is none"
    assert table.loc["up", "rank correlation"] == 1 and table.loc["down", "high"] == -1


def test_arms_that_lack_a_seed_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"attack": attack, "direction": direction, "image_id": f"i{image}", "query_id": f"i{image}"}
        for attack in ("clean", "sga")
        for direction in ("image_to_text", "text_to_image")
        for image in range(4)
    ]
    for name, seeds in (("none", (0, 1)), ("redraw", (0,))):
        for seed in seeds:
            place = tmp_path / "first" / "train" / slug(name) / str(seed)
            place.mkdir(parents=True)
            table = pd.DataFrame(rows).assign(model="after", clean_rank=1, adversarial_rank=[None] * 8 + [1, 2] * 4)
            table.to_parquet(place / "records.parquet")
            (place / "DONE").touch()
    world = read_world(tmp_path, "first", "sga")
    assert list(world.hits) == ["none"] and world.recall("none").tolist() == [[50.0, 50.0]] * 2


def test_every_job_composes(tmp_path: Path) -> None:
    jobs = []
    for world in WORLDS:
        jobs += [*clean_jobs(world), quality_job(world, tmp_path), *training_jobs(world, tmp_path, [0])[:3]]
    jobs += augmentation_jobs("first")
    assert len({job.place for job in jobs}) == len(jobs)
    for job in jobs:
        command, *words = job.words
        checks.check(compose(command, words))


def test_the_curves_are_of_arms_and_the_arms_of_augmentations() -> None:
    assert {name for names in CURVES.values() for name in names} <= set(ARMS)
    assert {part for arm in ARMS.values() for part in arm.augmentations} == set(AUGMENTATIONS)
