"""The training loop: what it draws, what it saves, and that a resumed run is the uninterrupted one to the bit."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import SepAttack, SequentialAttack, ThreatModel
from robustcli.config.schemas import TrainerSettings
from robustcli.data import Scenes
from robustcli.defenses import Objective
from robustcli.defenses.objectives.pairs import attack_captions
from robustcli.models import DualEncoder, small_cnn
from robustcli.training.group import Group
from robustcli.training.state import Saved, save
from robustcli.training.tasks import PairTask
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import UserError

THREAT = ThreatModel(norm="linf", eps="2/255", words=1)
MAT = Objective(name="mat", image=True, text=True, attacked_captions=0.5)
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "max_seconds": None,
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup": 0.25,
    "schedule": "cosine",
    "eps_scale": 1.0,
    "accumulation": 1,
    "clip": 1.0,
    "precision": "fp32",
    "ema": None,
    "compile": False,
    "save_minutes": 60.0,
    "eval_every": None,
    "log_every": 1,
}


@pytest.fixture
def make(scenes: Scenes, mat_attack: SequentialAttack) -> Any:
    def build(model: DualEncoder, objective: Objective = MAT, attack: Any = mat_attack, **change: Any) -> Trainer:
        settings = TrainerSettings(**SETTINGS | change)
        return Trainer(
            model,
            PairTask(scenes, objective, attack, THREAT, batch_size=settings.batch_size, seed=3),
            settings,
            seed=3,
            validate=lambda m: {"recall": 0.5},
        )

    return build


def small(seed: int = 1) -> DualEncoder:
    from robustcli.data.scenes import vocabulary
    from robustcli.models import tiny
    from tests.conftest import SMALL_MODEL

    return tiny(vocabulary(), seed=seed, **SMALL_MODEL)


def trained(trainer: Trainer, state: Path | None = None) -> str:
    trainer.prepare(state)
    trainer.fit(lambda figures: None)
    return trainer.model.fingerprint()


def test_same_seed_same_bits_and_the_global_generator_does_not_matter(make: Any) -> None:
    first = trained(make(small()))
    torch.manual_seed(99)
    assert trained(make(small())) == first
    assert first != small().fingerprint(), "nothing was trained"


@pytest.mark.parametrize("change", [{}, {"ema": 0.9}, {"accumulation": 2, "max_steps": 3}])
def test_stopped_and_resumed_equals_uninterrupted(make: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    whole = make(small(), **change)
    expected = trained(whole)
    stopped = make(small(), **change)
    stopped.prepare(tmp_path / "cut.pt")
    with pytest.raises(SystemExit) as end:  # SIGTERM in the middle of the second step: the step is finished first
        stopped.fit(lambda figures: os.kill(os.getpid(), signal.SIGTERM) if stopped.step == 2 else None)
    assert end.value.code == 143 and stopped.step == 2
    resumed = make(small(seed=7), **change)  # another start: everything must come from the state
    assert trained(resumed, tmp_path / "cut.pt") == expected
    assert resumed.training.history == whole.training.history


@pytest.mark.parametrize("lost", ["moments", "step", "average"])
def test_every_part_of_the_state_is_needed(make: Any, tmp_path: Path, lost: str) -> None:
    """The mutations behind the test above: a state without one part ends in other weights."""
    expected = trained(make(small(), ema=0.9))
    stopped = make(small(), ema=0.9)
    stopped.prepare(tmp_path / "cut.pt")
    with pytest.raises(SystemExit):
        stopped.fit(lambda figures: os.kill(os.getpid(), signal.SIGTERM) if stopped.step == 2 else None)
    saved = Saved(tmp_path / "cut.pt", Group())
    kept = {name: saved[name] for name in saved.names if not name.startswith(lost)}
    began = make(small(), ema=0.9).average or {}
    other = {"step": {"step": 0}, "average": {f"average/{key}": each for key, each in began.items()}}.get(lost, {})
    save(tmp_path / "cut.pt", kept | other, Group())
    assert trained(make(small(), ema=0.9), tmp_path / "cut.pt") != expected


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"\x80\x02}q\x00", lambda data: b""]
)
def test_a_damaged_state_is_told_without_torchs_advice(
    make: Any, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    trainer = make(small())
    trainer.prepare(tmp_path / "cut.pt")
    with pytest.raises(SystemExit):
        trainer.fit(lambda figures: os.kill(os.getpid(), signal.SIGTERM) if trainer.step == 2 else None)
    (tmp_path / "cut.pt").write_bytes(damage((tmp_path / "cut.pt").read_bytes()))
    with pytest.raises(UserError, match=r"cut\.pt is damaged or of another training.*begin a new run") as told:
        make(small()).prepare(tmp_path / "cut.pt")
    assert "weights_only" not in str(told.value)


def test_looking_more_often_changes_no_weight(make: Any) -> None:
    assert trained(make(small(), eval_every=1)) == trained(make(small()))


def test_first_handlers_are_back_and_weights_stay_trainable_after_fit(make: Any) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = make(small())
    trained(trainer)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert all(weight.requires_grad and weight.grad is None for weight in trainer.model.parameters())


def test_a_bound_in_seconds_becomes_steps_and_leaves_the_start_as_it_was(make: Any) -> None:
    trainer = make(small(), max_steps=None, max_seconds=0.5, ema=0.9)
    trainer.prepare()
    assert trainer.training.steps >= 1 and trainer.training.step_seconds > 0
    assert trainer.model.fingerprint() == small().fingerprint()
    assert not trainer.optimiser.state, "moments of the timed steps would lead the first real one"
    counted = make(small(), max_steps=trainer.training.steps, ema=0.9)
    trainer.fit(lambda figures: None)
    assert trainer.model.fingerprint() == trained(counted)


def test_timed_steps_leave_the_moments_of_batch_norms_alone() -> None:
    class Plain:
        def load(self, number: int) -> tuple[None, Tensor]:
            return None, torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(number))

        def loss(self, model: Any, batch: None, images: Tensor, *, seed: int) -> Tensor:
            return model(images).square().mean()

    model = small_cnn(classes=["a", "b"], channels=1, widths=[4])
    before = model.fingerprint()
    settings = TrainerSettings(**SETTINGS | {"max_steps": None, "max_seconds": 0.01})
    trainer = Trainer(model, Plain(), settings, seed=3, validate=lambda model: {})
    trainer.prepare()
    assert model.fingerprint() == before
    trainer.fit(lambda figures: None)
    assert model.fingerprint() != before


def test_objectives_attack_the_sides_that_they_name(
    make: Any, mat_attack: SequentialAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for side in ("image", "text"):
        kind = type(getattr(mat_attack, side))
        original = kind.maximise
        monkeypatch.setattr(
            kind, "maximise", lambda *a, side=side, original=original, **k: asked.append(side) or original(*a, **k)
        )
    for image, text in ((False, False), (True, False), (False, True), (True, True)):
        asked.clear()
        trained(make(small(), Objective(name="x", image=image, text=text), max_steps=1))
        assert asked == [side for side, wanted in (("text", text), ("image", image)) if wanted], (
            "text first, then image"
        )


def test_the_attack_moves_the_loss_up_and_leaves_no_gradient_behind(
    scenes: Scenes, mat_attack: SequentialAttack
) -> None:
    from robustcli.data.sampling import PairSampler

    model, batch = small(), PairSampler(scenes, batch_size=16, seed=0)(0)
    images = scenes.images(batch.image_ids)
    losses = {}
    for name, image, text in (("clean", False, False), ("image", True, False), ("mat", True, True)):
        losses[name] = Objective(name=name, image=image, text=text).loss(
            model, mat_attack, THREAT, images, batch, seed=1
        )
    assert losses["clean"] < losses["image"], losses
    assert all(weight.grad is None for weight in model.parameters())
    losses["mat"].backward()
    assert all(
        weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        for weight in model.network.text.blocks.parameters()
    )


def test_a_share_of_the_captions_is_attacked(scenes: Scenes, mat_attack: SequentialAttack) -> None:
    from robustcli.data.sampling import PairSampler

    batch = PairSampler(scenes, batch_size=16, seed=0)(0)
    objective = Objective(name="text", image=False, text=True, attacked_captions=0.25)
    rows = objective._attacked_rows(16, 5)
    assert rows is not None and len(set(rows.tolist())) == 4
    images = scenes.images(batch.image_ids)
    captions = attack_captions(small(), mat_attack, THREAT, images, batch, seed=5, rows=rows)
    changed = [i for i, (a, b) in enumerate(zip(captions, batch.captions, strict=True)) if a != b]
    assert set(changed) <= set(rows.tolist())
    assert 1 <= sum(a != b for a, b in zip(captions, batch.captions, strict=True)) <= 4


def test_a_share_that_rounds_to_no_caption_is_a_mistake_and_none_is_none(
    make: Any, scenes: Scenes, mat_attack: SequentialAttack
) -> None:
    few = Objective(name="text", image=False, text=True, attacked_captions=0.02)
    with pytest.raises(UserError, match=r"0\.02, which of a batch of 16 is no caption at all: set .*batch_size=26 or"):
        make(small(), objective=few)
    few.check_batch(26)
    none = Objective(name="mat", image=True, text=True, attacked_captions=0.0)
    assert len(trained(make(small(), objective=none)))


def test_mistakes_come_before_the_first_step(make: Any, mat_attack: SequentialAttack) -> None:
    with pytest.raises(UserError, match="batch_size"):
        make(small(), batch_size=49)
    with pytest.raises(UserError, match=r"attack\.text is null"):
        make(small(), attack=SepAttack(image=mat_attack.image))
    with pytest.raises(UserError, match="max_steps"):
        make(small(), max_steps=None)
    with pytest.raises(UserError, match="between 0 and 1"):
        Objective(name="x", image=True, text=True, clean_weight=2)


def test_a_loss_that_is_not_finite_stops_the_run(make: Any) -> None:
    model = small()
    with torch.no_grad():
        model.network.text.projection.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"trainer\.lr"):
        trained(make(model, objective=Objective(name="clean", image=False, text=False)))


def test_compiling_changes_how_the_image_tower_is_called_and_nothing_else(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def compiled(self: nn.Module) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(args[0]))
            return self._call_impl(*args, **kwargs)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    plain = trained(make(small()))
    assert not calls
    trainer = make(small(), compile=True)
    assert trained(trainer) == plain, "the same weights under the same names"
    before = len(calls)
    assert before > 0 and set(calls) == {16}, "the batch; a smaller pass of the attack is filled up to full tiles"
    trainer.model.encode_image(torch.zeros(3, 3, 32, 32))
    assert len(calls) == before, "judging goes the plain way"


def test_without_a_state_nothing_is_saved_and_a_stop_is_still_in_order(make: Any, tmp_path: Path) -> None:
    trainer = make(small())
    trainer.prepare()
    with pytest.raises(SystemExit):
        trainer.fit(lambda figures: os.kill(os.getpid(), signal.SIGTERM))
    assert trainer.step == 1 and not list(tmp_path.iterdir())


class _Noted:
    """A task that notes which batches it was given, and by which seed."""

    def __init__(self) -> None:
        self.batches, self.seeds = list[int](), list[int]()

    def load(self, number: int) -> tuple[int, Tensor]:
        return number, torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(number))

    def loss(self, model: DualEncoder, batch: int, images: Tensor, *, seed: int) -> Tensor:
        self.batches.append(batch)
        self.seeds.append(seed)
        return model.encode_image(images)[:, 0].mean()


def test_each_pass_has_a_batch_and_a_seed_that_no_other_has() -> None:
    task = _Noted()
    settings = TrainerSettings(**SETTINGS | {"accumulation": 3, "max_steps": 3})
    trained(Trainer(small(), task, settings, seed=3, validate=lambda model: {}))
    assert task.batches == list(range(9))
    assert len(set(task.seeds)) == 9


def test_the_average_begins_at_the_weights_and_slows_down() -> None:
    """Decay 1/10, 2/11, 3/12, ... up to what is set: after a few steps little is left of the start."""
    settings = TrainerSettings(**SETTINGS | {"optimizer": "sgd", "lr": 0.1, "ema": 0.2})
    trainer = Trainer(small(), _Noted(), settings, seed=3, validate=lambda model: {})
    weight = next(weight for weight in trainer.model.network.visual.parameters() if weight.ndim > 1)
    weights = [weight.detach().clone()]
    trainer.prepare()
    trainer.fit(lambda figures: weights.append(weight.detach().clone()))
    expected = weights[0]
    for decay, learnt in zip((1 / 10, 2 / 11, 0.2, 0.2), weights[1:], strict=True):
        expected = decay * expected + (1 - decay) * learnt
    assert not torch.allclose(expected, weights[-1], atol=1e-6)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_share_of_the_loss_is_that_of_the_clean_pairs(scenes: Scenes, mat_attack: SequentialAttack) -> None:
    from robustcli.data.sampling import PairSampler

    model, batch = small(), PairSampler(scenes, batch_size=16, seed=0)(0)

    def loss(clean_weight: float, attacked: bool = True) -> float:
        objective = Objective(name="x", image=attacked, text=attacked, clean_weight=clean_weight)
        return objective.loss(model, mat_attack, THREAT, scenes.images(batch.image_ids), batch, seed=1).item()

    hostile, clean = loss(0.0), loss(0.0, attacked=False)
    assert hostile > clean * 1.001
    assert [loss(0.25), loss(1.0)] == pytest.approx([0.75 * hostile + 0.25 * clean, clean], rel=1e-5)


def test_micro_batches_add_up_to_one_batch_of_their_size(scenes: Scenes) -> None:
    """A loss that is a mean over the batch has one gradient, whether the batch comes whole or in halves."""
    rows = torch.arange(32)

    class Halves:
        def __init__(self, count: int) -> None:
            self.parts = rows.chunk(count)

        def load(self, number: int) -> tuple[Tensor, Tensor]:
            part = self.parts[number % len(self.parts)]
            return part, scenes.images(part)

        def loss(self, model: DualEncoder, batch: Tensor, images: Tensor, *, seed: int) -> Tensor:
            return model.encode_image(images)[:, 0].square().mean()

    weights = []
    for count in (1, 2):
        settings = TrainerSettings(**SETTINGS | {"accumulation": count, "optimizer": "sgd", "clip": None, "lr": 0.1})
        trainer = Trainer(small(), Halves(count), settings, seed=3, validate=lambda model: {})
        trained(trainer)
        weights.append(torch.cat([weight.flatten() for weight in trainer.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights[0], torch.cat([weight.flatten() for weight in small().parameters()]))


def test_steps_planned_by_the_clock_survive_a_kill_before_the_first_save(make: Any, tmp_path: Path) -> None:
    state, bound = tmp_path / "parts" / "state.zip", {"max_steps": None, "max_seconds": 0.5}
    killed = make(small(), **bound)
    killed.prepare(state)
    again = make(small(), **bound | {"max_seconds": 50.0})  # a machine that seems a hundred times as fast
    again.prepare(state)
    assert again.training == killed.training and again.step == 0
