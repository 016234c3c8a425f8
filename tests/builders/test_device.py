"""Moves of models to a device that has no memory left for them."""

from typing import Any

import pytest
import torch
from torch import nn

from robustcli.builders.device import on_device
from robustcli.cli.launch import launch
from robustcli.utils.errors import UserError

CPU = torch.device("cpu")
# What torch raises for the memory of a GPU: for a tensor, and for its first use by a process.
FULL = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIncluding non-PyTorch memory"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
)


def full(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def to(self: nn.Module, *_: Any, **__: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(nn.Module, "to", to)


@pytest.mark.parametrize("error", FULL, ids=["tensor", "context"])
def test_a_full_device_is_one_sentence(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(on_device(nn.Linear(1, 1), CPU, "model"), nn.Linear)
    full(monkeypatch, error)
    with pytest.raises(UserError, match=r"^model does not fit into the free memory of cpu: choose a smaller one"):
        on_device(nn.Linear(1, 1), CPU, "model")


def test_another_error_of_a_move_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, RuntimeError("a copy of a meta tensor"))
    with pytest.raises(RuntimeError, match="meta"):
        on_device(nn.Linear(1, 1), CPU, "model")


@pytest.mark.parametrize(
    ("command", "words", "name"),
    [
        ("evaluate", ["dataset=digits", "model=digits"], "model"),
        ("train-classifier", ["dataset=digits", "model=digits"], "model"),
        ("train-mat", ["dataset.train=16", "dataset.val=8", "dataset.test=8", "model.checkpoint=null"], "model"),
        ("train-generator", [], "generator"),
        ("purify", [], "model"),
        ("learn-alphas", [], "model"),
    ],
)
def test_every_command_says_so_before_any_work(
    command: str,
    words: list[str],
    name: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full(monkeypatch, FULL[0])
    assert launch(command, [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name} does not fit into the free memory of ") and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()
