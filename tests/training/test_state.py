"""The file that a training goes on from: all of it comes back, and what is damaged is told."""

import warnings
from pathlib import Path

import pytest
import torch

from robustcli.training import state
from robustcli.training.group import Group
from robustcli.training.state import Saved, save
from robustcli.utils.errors import UserError

ENTRIES = {
    "weights/a": torch.arange(6.0).view(2, 3),
    "moments/0": {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)},
    "weights/b:1.weight": torch.tensor(5),
    "step": 7,
    "training": {"steps": 9, "history": [{"loss": 0.5}], "step_seconds": None},
}


def test_what_was_saved_comes_back_by_folder_and_name(tmp_path: Path) -> None:
    save(tmp_path / "state.zip", ENTRIES, Group())
    saved = Saved(tmp_path / "state.zip", Group())
    assert saved.names == list(ENTRIES) and saved["step"] == 7 and saved["training"] == ENTRIES["training"]
    weights = dict(saved.under("weights"))
    assert list(weights) == ["a", "b:1.weight"] and torch.equal(weights["a"], torch.arange(6.0).view(2, 3))
    assert Saved(tmp_path / "none.zip", Group()).names == []


def test_an_entry_that_several_processes_have_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process is played: it sends an entry of the first one and one of its own, a piece each."""
    two = Group()
    two.size = 2
    sent = iter([{"weights/a": torch.zeros(2, 3)}, {"moments/1": {"exp_avg": torch.zeros(1)}}])
    monkeypatch.setattr(two, "gathered", lambda _: torch.tensor([0, 2]))
    monkeypatch.setattr(two, "collected", lambda own: [own, state.packed(next(sent))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a zip may hold a name twice, and warns
        save(tmp_path / "state.zip", ENTRIES, two)
    saved = Saved(tmp_path / "state.zip", Group())
    assert saved.names == [*ENTRIES, "moments/1"] and torch.equal(saved["weights/a"], torch.arange(6.0).view(2, 3))


def test_pieces_hold_every_entry_once_and_are_cut_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_PIECE", 24)
    assert list(state._pieces(ENTRIES)) == [["weights/a"], ["moments/0", "weights/b:1.weight"], ["step", "training"]]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "state.zip", ENTRIES, Group())
    content = bytearray((tmp_path / "state.zip").read_bytes())
    content[content.index(torch.arange(6.0).numpy().tobytes()) + 4] ^= 1
    (tmp_path / "state.zip").write_bytes(content)
    with pytest.raises(state.DAMAGES):
        dict(Saved(tmp_path / "state.zip", Group()).under("weights"))
    (tmp_path / "state.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="is damaged or of another training"):
        Saved(tmp_path / "state.zip", Group())


def test_a_changed_name_is_noticed(tmp_path: Path) -> None:
    """Nothing asks for the moments of a given weight: without it they would begin anew."""
    save(tmp_path / "state.zip", ENTRIES, Group())
    content = (tmp_path / "state.zip").read_bytes()
    first, _, last = content.rpartition(b"moments/0")  # in the list at the end
    (tmp_path / "state.zip").write_bytes(first + b"momentz/0" + last)
    with pytest.raises(UserError, match="is damaged or of another training"):
        Saved(tmp_path / "state.zip", Group())
