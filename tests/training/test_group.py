"""Several processes leave the bits of one, for any number of them, and notice the end of another."""

import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.training.group import Group

from .gloo import MAT, MICRO, TRAININGS, held, names_of, outcome, pairs, start, terms, total

SIZE = 4
COUNTS = range(2, SIZE + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gloo")


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        cut = pairs(MAT)
        cut.prepare(folder / "state.zip")
        with pytest.raises(SystemExit):  # one process begins
            cut.fit(lambda figures: os.kill(os.getpid(), signal.SIGTERM) if cut.step == 1 else None)
    return start(SIZE, folder)


def ranks(found: list[dict[str, Any]], key: str, count: int, what: str = "") -> list[Any]:
    return [each[f"{key} {count}{what}"] for each in found[:count]]


@pytest.mark.parametrize("count", COUNTS)
def test_a_sum_has_the_bits_of_one_process(found: list[dict[str, Any]], count: int) -> None:
    alone = total(Group(), MICRO)
    assert all(each == alone for each in ranks(found, "total", count))
    in_turn = terms(MICRO)[0]
    for term in terms(MICRO)[1:]:
        in_turn = in_turn + term
    assert in_turn.tolist() != alone, "any order would do for these terms"


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_has_the_bits_of_one_process(found: list[dict[str, Any]], name: str) -> None:
    trainer = TRAININGS[name]()
    alone = outcome(trainer)
    validated = [row["rank"] for row in trainer.training.history]
    for count in [count for count in COUNTS if name in names_of(count)]:
        assert all(each == alone for each in ranks(found, name, count)), count
        assert found[0][f"{name} {count} validated"] == validated, "the first one validates"


def test_what_one_process_began_goes_on_with_any_number(found: list[dict[str, Any]]) -> None:
    alone = outcome(TRAININGS["mat"]())
    for strategy in ("ddp", "zero2"):
        assert all(each == alone for count in COUNTS for each in ranks(found, f"resumed, {strategy}", count))


@pytest.mark.parametrize("count", COUNTS)
def test_zero2_holds_a_share_in_each_process_and_saves_what_one_process_saves(
    found: list[dict[str, Any]], folder: Path, tmp_path: Path, count: int
) -> None:
    alone = TRAININGS["mat"]()
    outcome(alone, tmp_path / "state.zip")
    moments, average = held(alone)
    each = ranks(found, "mat, zero2", count, " held")
    assert sum(of_moments for of_moments, _ in each) == moments
    assert max(of_moments for of_moments, _ in each) < 1.5 * moments / count, "the largest weight allows no more"
    assert max(of_average for _, of_average in each) < 1.5 * average / count
    paths = folder / f"mat, zero2-{count}.zip", tmp_path / "state.zip"
    with zipfile.ZipFile(paths[0]) as kept, zipfile.ZipFile(paths[1]) as expected:
        assert sorted(kept.namelist()) == sorted(expected.namelist())
        assert all(kept.read(name) == expected.read(name) for name in expected.namelist())


def test_what_the_first_one_says_all_have(found: list[dict[str, Any]]) -> None:
    assert all(each == "the first" for count in COUNTS for each in ranks(found, "shared", count))


def test_processes_of_different_trainings_are_told_before_a_step(found: list[dict[str, Any]]) -> None:
    assert len({each["unlike"] for each in found}) == 1
    assert found[0]["unlike"].startswith("processes 1 and 2 of 4 are of different trainings: weights, data, seed or")


def test_the_end_of_another_is_a_sentence_in_each(found: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(found[:-1]):
        assert each["lost"].startswith(f"process {rank + 1} of {SIZE} has lost another one of the training"), each
        assert each["lost"].endswith("with resume=runs/7, with any number of processes")
        assert len(each["lost"].splitlines()) == 1


def test_runs_share_all_micro_batches_in_order() -> None:
    group = Group()
    group.size = 3
    assert [number for rank in range(3) for number in group.run(12, rank)] == list(range(12))


def test_one_process_sends_nothing() -> None:
    group, values = Group(), torch.arange(3.0)
    assert torch.equal(group.gathered(values), values) and group.shared(lambda: None) is None
    group.check_equal([1], "differ")
    assert torch.equal(group.sent(values, 0), values) and group.collected(b"own") == [b"own"]
