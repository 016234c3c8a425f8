"""Trainings in several processes that gloo connects, for `test_group`; started once for all of its tests."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from robustcli.attacks import PGD, SequentialAttack, SynonymTable, ThreatModel, WordSubstitution
from robustcli.config.schemas import TrainerSettings
from robustcli.data import Scenes
from robustcli.data.scenes import synonym_table, vocabulary
from robustcli.defenses import MMCoA, Objective, PairObjective
from robustcli.models import small_cnn, tiny
from robustcli.training.group import Group, connected, disconnect
from robustcli.training.pairwise import PairwiseSum
from robustcli.training.tasks import PairTask
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import LostProcess, UserError

from ..conftest import SIZES, SMALL_MODEL

MICRO = 12  # batches of a step: 2, 3, 4 and 6 processes can share them
SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "max_seconds": None,
    "batch_size": 4,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup": 0.0,
    "schedule": "constant",
    "eps_scale": 1.0,
    "accumulation": MICRO,
    "clip": 1.0,
    "precision": "fp32",
    "ema": 0.9,
    "compile": False,
    "save_minutes": 60.0,
    "eval_every": 1,
    "log_every": 1,
}


def validated(model: Any) -> dict[str, float]:
    """A figure of the weights that are validated, the average."""
    return {"rank": float(sum(weight.detach().double().abs().sum() for weight in model.parameters()))}


def pairs(objective: PairObjective, **change: Any) -> Trainer:
    """A training of the small model on scenes."""
    words = SynonymTable({word: list(others) for word, others in synonym_table().items()})
    text = WordSubstitution(search="hotflip", top_k=0, candidates=words)
    attack = SequentialAttack(image=PGD(steps=1, loss="infonce"), text=text)
    scenes = Scenes(split="train", synonym_frequency=0.05, **SIZES)
    threat = ThreatModel(norm="linf", eps="2/255", words=1)
    settings = TrainerSettings(**SETTINGS | change)
    task = PairTask(scenes, objective, attack, threat, batch_size=settings.batch_size, seed=3)
    model = tiny(vocabulary(), seed=1, **SMALL_MODEL)
    return Trainer(model, task, settings, seed=3, validate=validated)


class Drawn:
    """Batches whose loss reads moments of batch norms and draws by the global generator."""

    def load(self, number: int) -> tuple[int, Tensor]:
        return number, torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(number))

    def loss(self, model: Any, batch: int, images: Tensor, *, seed: int) -> Tensor:
        read = model(images) if batch % 2 else model.network.layers(images)  # without the head in every other batch
        dropped: Tensor = nn.functional.dropout(read, 0.5)
        return dropped.square().mean()


def moments(**change: Any) -> Trainer:
    """A training of a network with batch norms."""
    model = small_cnn(classes=["a", "b"], channels=1, widths=[4], seed=1)
    return Trainer(model, Drawn(), TrainerSettings(**SETTINGS | change), seed=3, validate=validated)


MAT = Objective(name="mat", image=True, text=True, attacked_captions=0.5)
TRAININGS: Mapping[str, Callable[[], Trainer]] = {
    "mat": lambda: pairs(MAT),
    "mat, gathered": lambda: pairs(MAT, negatives="step", max_steps=1),
    "mmcoa, gathered": lambda: pairs(MMCoA(positives="soft"), negatives="step", max_steps=1),
    "moments": moments,
    "mat, zero2": lambda: pairs(MAT, strategy="zero2"),
    "moments, zero2": lambda: moments(strategy="zero2"),
    "sgd, zero2": lambda: moments(strategy="zero2", optimizer="sgd", clip=None, ema=None, weight_decay=0.1),
}
ALL = ("mat", "moments", "mat, zero2")  # those that every number of processes repeats; the others two and four


def names_of(count: int) -> list[str]:
    """The trainings that ``count`` processes repeat."""
    return [name for name in TRAININGS if name in ALL or count != 3]


def outcome(trainer: Trainer, state: Path | None = None) -> list[Any]:
    """Final weights, by their hash, and losses of a training."""
    trainer.prepare(state)
    training = trainer.fit(lambda figures: None)
    return [trainer.model.fingerprint(), [row["loss"] for row in training.history]]


def held(trainer: Trainer) -> list[int]:
    """Values that the process holds for its optimiser, beyond one a weight, and for its average."""
    moments = [each for kept in trainer.optimiser.state.values() for each in kept.values() if each.ndim]
    return [sum(each.numel() for each in moments), sum(each.numel() for each in (trainer.average or {}).values())]


def terms(count: int) -> list[Tensor]:
    """Vectors whose sum is another in nearly every order."""
    source = torch.Generator().manual_seed(0)
    return [torch.randn(1001, generator=source) * 10.0 ** (each % 7) for each in range(count)]


def total(group: Group, count: int) -> list[float]:
    """The sum of `terms`, shared by ``group``."""
    local = PairwiseSum()
    for number in group.run(count):
        local.add(terms(count)[number], number)
    return [float(value) for value in group.total(local, count)]


def work(rank: int, size: int, folder: Path) -> None:
    """One of ``size`` processes; leaves what it found in ``folder``."""
    os.environ.update(GLOO_SOCKET_IFNAME="lo", ROBUSTCLI_CACHE=str(folder / "cache"))
    torch.set_num_threads(1)
    whole = connected(lambda: dist.FileStore(str(folder / "store"), size), rank, size, torch.device("cpu"))
    found: dict[str, Any] = {}
    for count in range(2, size + 1):
        control = dist.new_group(list(range(count)))
        if rank >= count:
            continue
        group = Group(control, torch.device("cpu"))
        found[f"total {count}"] = total(group, MICRO)
        found[f"shared {count}"] = (group.shared(lambda: b"the first" if rank == 0 else b"another") or b"").decode()
        for name in names_of(count):
            trainer = TRAININGS[name]()
            trainer.group = group
            state = folder / f"{name}-{count}.zip" if rank == 0 and name == "mat, zero2" else None
            found[f"{name} {count}"] = outcome(trainer, state)
            found[f"{name} {count} held"] = held(trainer)
            if rank == 0:
                found[f"{name} {count} validated"] = [row.get("rank") for row in trainer.training.history]
        for strategy in ("ddp", "zero2"):
            resumed, state = pairs(MAT, strategy=strategy), folder / f"state-{strategy}-{count}-{rank}.zip"
            resumed.group = group
            if rank == 0:  # the others have no such file
                shutil.copy(folder / "state.zip", state)
            found[f"resumed, {strategy} {count}"] = outcome(resumed, state)
    other = pairs(MAT, lr=1e-3 * (1 + rank % 2))
    other.group = whole
    try:
        other.prepare()
    except UserError as error:
        found["unlike"] = str(error)
    whole.directory = "runs/7"
    if rank == size - 1:
        (folder / f"{rank}.json").write_text(json.dumps(found))
        os._exit(9)
    try:
        whole.gathered(torch.zeros(1))
    except LostProcess as error:
        found["lost"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    disconnect()


def start(size: int, folder: Path) -> list[dict[str, Any]]:
    """What ``size`` processes found; forked from one that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.gloo"])
    processes = [context.Process(target=work, args=(rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
