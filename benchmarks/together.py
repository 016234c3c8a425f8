"""A training step shared by two processes against the same step in one, by the clock.

Two cores have to be free: the processor and the load of the machine stand beside the figures. Both sides take turns in
one run, and the weights that they end with are compared.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from benchmarks.report import Row
from robustcli.builders.data import build_captioned
from robustcli.builders.training import build_pair_trainer
from robustcli.config.compose import compose
from robustcli.runs.provenance import machine
from robustcli.training.group import Group, connected, disconnect
from robustcli.training.trainer import Trainer, Training

SPEED_UP = 1.7
_PROCESSES = 2
_NEGATIVES = ("micro", "step")


def run(*, quick: bool = False) -> list[Row]:
    """Two processes against one: the step of MAT, with negatives of a batch and of the step."""
    with tempfile.TemporaryDirectory() as folder:
        other = multiprocessing.get_context("spawn").Process(target=_other, args=(folder, quick), daemon=True)
        other.start()
        try:
            group = _group(folder, 0)
            rows = [_row(group, negatives, quick=quick) for negatives in _NEGATIVES]
            group.shared(lambda: None)
        finally:
            disconnect()
            other.join(30)
            other.kill()
    return rows


def _row(group: Group, negatives: str, *, quick: bool) -> Row:
    alone, together = _trainer(quick, negatives), _trainer(quick, negatives)
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(1 + (1 if quick else 8)):
        seconds["alone"].append(_timed(alone, quick=quick))
        group.shared(negatives.encode)  # the other process has waited, and computes from here on
        _join(together, group)
        seconds["together"].append(_timed(together, quick=quick))
    same = "equal weights" if alone.model.fingerprint() == together.model.fingerprint() else "DIFFERENT weights"
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    ours, other = (statistics.median(seconds[name][1:]) for name in ("together", "alone"))
    return Row(
        what=f"MAT step, negatives={negatives}, 2 processes",
        against="1 process",
        ours=ours,
        other=other,
        at_least=SPEED_UP,
        note=f"wall; {same}; {machine()['cpu']}, {load}",
    )


def _trainer(quick: bool, negatives: str) -> Trainer:
    size = 8 if quick else 128
    words = [f"dataset.train={8 * size}", "dataset.val=8", "model.checkpoint=null", "attacks=none"]
    words += [f"trainer.batch_size={size}", "trainer.accumulation=2", f"trainer.negatives={negatives}"]
    config: Any = compose("train-mat", words)
    torch.set_num_threads(1)
    sets = {split: build_captioned(config.dataset, split) for split in ("train", "val")}
    trainer, _ = build_pair_trainer(config, sets, torch.device("cpu"))
    trainer.validate = lambda model: {}
    return trainer


def _join(trainer: Trainer, group: Group) -> None:
    if trainer.group is not group:
        trainer.group = group
        trainer.prepare()


def _timed(trainer: Trainer, *, quick: bool) -> float:
    """Seconds of a step, the mean of several after a first one, by which the reader is ahead."""
    ends: list[float] = []
    trainer.training = Training(steps=trainer.step + 1 + (2 if quick else 5))
    trainer.fit(lambda figures: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _group(folder: str, rank: int) -> Group:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = str(Path(folder) / "store")
    return connected(lambda: distributed.FileStore(place, _PROCESSES), rank, _PROCESSES, torch.device("cpu"))


def _other(folder: str, quick: bool) -> None:
    """The life of the other process: it trains along where it is asked to."""
    group = _group(folder, 1)
    trainers = {negatives: _trainer(quick, negatives) for negatives in _NEGATIVES}
    while (negatives := group.shared(lambda: None)) is not None:
        _join(trainers[negatives.decode()], group)
        _timed(trainers[negatives.decode()], quick=quick)
    disconnect()
