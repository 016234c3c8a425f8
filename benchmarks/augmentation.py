"""Augmented pairs in training, and the making of them.

Pairs are mixed in by drawing them in place of a set's own, so a step costs what it costs without; the drawing, the
reading of new images and the relation of truth over more captions are what could make it dearer.
"""

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Row, cpu_seconds, cpu_seconds_once
from benchmarks.setting import Setting
from robustcli.builders.objectives import build_objective
from robustcli.config.compose import compose
from robustcli.data import ImageTextData, Scenes
from robustcli.data.augment import Augmented, Augmenter, Paraphrase, Redraw
from robustcli.data.augment.shards import shard_path, write_shard
from robustcli.data.sampling import Pairing, PairSampler, Replace
from robustcli.utils.seeding import derive_seed

_TARGET = 1.1


def run(*, quick: bool = False) -> list[Row]:
    """A step of MAT with one-to-many pairs against one without, and each method of `scenes` against a step."""
    repeats, size, images = (2, 16, 64) if quick else (15, 128, 2048)
    with tempfile.TemporaryDirectory() as folder:
        data = Scenes(split="train", train=images)
        methods: dict[str, Augmenter] = {"paraphrase": Paraphrase(number=5), "redraw": Redraw(number=5)}
        making = {}
        for name, method in methods.items():
            making[name] = cpu_seconds_once(lambda method=method, name=name: _store(Path(folder) / name, data, method))
        mixed = Augmented(data, [Path(folder) / name for name in methods])
        setting = Setting.of(batches=1, batch_size=size)
        cpu = cpu_seconds(
            {
                "mixed": _step(setting, mixed, size, Replace()),
                "plain": _step(setting, data, size, Replace()),
            },
            repeats=repeats,
        )
    return [
        Row(what="MAT+ step", against="MAT step", ours=cpu["mixed"], other=cpu["plain"], at_most=_TARGET),
        *(
            Row(
                what=f"{name}, 5 pairs for each of {size} images",
                against="MAT step",
                ours=seconds * size / images,
                other=cpu["plain"],
                note=f"{images / seconds:.0f} images a second",
            )
            for name, seconds in making.items()
        ),
    ]


def _store(place: Path, data: ImageTextData, method: Augmenter) -> None:
    places = {row: at for rows in data.captions_of() for at, row in enumerate(rows.tolist())}
    pairs = method.pairs(data, range(len(data)), seed=0)
    write_shard(shard_path(place, 0), pairs, data.image_ids, places, {})
    (place / "manifest.json").write_text(json.dumps({"command": "augment", "data": {"train": data.provenance()}}))
    (place / "DONE").touch()


def _step(setting: Setting, data: ImageTextData, batch_size: int, pairing: Pairing) -> Callable[[], None]:
    """A training step from the drawing of its pairs to the update."""
    objective = build_objective(compose("train-mat", ["defense=mat", "attacks=none"]).defense)
    sampler, numbers = PairSampler(data, batch_size=batch_size, seed=0, pairing=pairing), itertools.count()

    def step() -> None:
        number = next(numbers)
        batch = sampler(number)
        seed = derive_seed(0, "step", number, 0)
        images = data.images(batch.image_ids)
        setting.update(objective.loss(setting.model, setting.attack, setting.threat, images, batch, seed=seed))

    return step
