"""`robustcli augment`: new captions or new images for a training set, as shards beside it."""

import json
import time
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from robustcli.builders.data import build_training_pairs
from robustcli.builders.device import choose_device
from robustcli.builders.hook import build
from robustcli.config.unread import refuse_unread
from robustcli.data import ImageTextData
from robustcli.data.augment import AugmentedPair, Augmenter
from robustcli.data.augment.base import distinct
from robustcli.data.augment.shards import shard_path, write_shard
from robustcli.engines.loading import print_notes
from robustcli.report.augment import write_augmentation
from robustcli.runs.run import Run
from robustcli.utils.progress import Progress


@dataclass(frozen=True)
class LoadedAugmentation:
    """The set, its images that are augmented (the first so many), and the method."""

    data: ImageTextData
    images: range
    augmenter: Augmenter


def load(config: DictConfig) -> LoadedAugmentation:
    """Data and method, whose models are loaded here: a missing one is an early error.

    Raises:
        UserError: a data set with classes, or a method that does not fit to it or lacks what it needs.
    """
    device = choose_device(config.device, config.threads)
    refuse_unread("checkpoint", "augment=... names the model of its own, where it has one")
    augmenter: Augmenter = build(config.augment, device, node="augment")
    data = build_training_pairs(config.dataset, config.split)
    augmenter.check(data)
    images = range(len(data) if config.images is None else min(config.images, len(data)))
    return LoadedAugmentation(data, images, augmenter)


def run(config: DictConfig, run: Run) -> float:
    """Augment shard by shard, each written whole; returns the number of pairs."""
    with run.phase("load"):
        loaded = load(config)
    data, augmenter = loaded.data, loaded.augmenter
    print_notes({data.split: data})
    weights = {} if augmenter.model_sha256 is None else {"augmenter": augmenter.model_sha256}
    run.note_inputs(data={data.split: data.provenance()}, weights=weights)
    method = str(HydraConfig.get().runtime.choices["augment"])
    settings: Any = OmegaConf.to_container(config.augment, resolve=True)
    parameters = {key: value for key, value in settings.items() if key != "_target_"}
    made = {"method": method, "parameters": json.dumps(parameters), "seed": config.seed, **augmenter.provenance()}
    with run.phase("augment"):
        _augment(run, loaded, config, made)
    with run.phase("report"):
        return write_augmentation(run, data, method, len(loaded.images))


def _augment(run: Run, loaded: LoadedAugmentation, config: DictConfig, made: dict[str, Any]) -> None:
    """Every shard that is not there yet."""
    data, images = loaded.data, loaded.images
    places = {row: place for rows in data.captions_of() for place, row in enumerate(rows.tolist())}
    starts = [start for start in range(0, len(images), config.shard) if not shard_path(run.directory, start).exists()]
    left = sum(len(images[start : start + config.shard]) for start in starts)
    begin, seconds = time.perf_counter(), run.manifest.get("augment_seconds", 0.0)
    with Progress(len(images), "augment", done=len(images) - left, unit="images") as progress:
        for start in starts:
            kept, repetitions = list[AugmentedPair](), 0
            # A few images at a time: the progress moves, and the memory is that of a batch of a model.
            for first in range(start, min(start + config.shard, len(images)), config.batch_size):
                rows = list(images[first : min(first + config.batch_size, start + config.shard)])
                pairs = loaded.augmenter.pairs(data, rows, seed=config.seed)
                unique = distinct(pairs, data)
                repetitions += len(pairs) - len(unique)
                kept += unique
                progress.advance(len(rows), pairs=len(kept))
            # Noted before the shard is there: a run that is killed in between makes it again, and counts the same.
            run.note(repetitions={str(start): repetitions}, augment_seconds=seconds + time.perf_counter() - begin)
            write_shard(shard_path(run.directory, start), kept, data.image_ids, places, made)
