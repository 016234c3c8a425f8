"""One live holder at a time; who waits gets its turn."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from robustcli.utils import locks
from robustcli.utils.errors import UserError


def test_threads_take_turns(tmp_path: Path) -> None:
    inside: list[str] = []

    def work() -> None:
        with locks.exclusive(tmp_path / ".lock"):
            inside.append("in")
            inside.append("out")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == ["in", "out"] * 4


def test_a_refusal_names_the_holder_and_keeps_its_signature(tmp_path: Path) -> None:
    lock = locks.take(tmp_path / ".lock")
    for _ in range(2):  # the first refusal must not wipe the name that the second one tells
        with pytest.raises(UserError, match=f"^held by process {os.getpid()} on "):
            locks.take(tmp_path / ".lock", busy=lambda holder: f"held by {holder}")
    lock.release()
    locks.take(tmp_path / ".lock", busy=str).release()


def hold(pipe: multiprocessing.connection.Connection, path: Path) -> None:
    with locks.exclusive(path):
        pipe.send("held")
        pipe.recv()


def test_a_killed_holder_lets_the_next_one_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(there, tmp_path / ".lock"), daemon=True)
    process.start()
    assert here.recv() == "held"
    with pytest.raises(UserError, match=f"{process.pid}"):
        locks.take(tmp_path / ".lock", busy=str)
    process.kill()
    process.join()
    with locks.exclusive(tmp_path / ".lock"):
        pass


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock cannot be locked \(Is a directory\)"):
        locks.take(tmp_path / ".lock", busy=str)
