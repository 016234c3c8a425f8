"""``rerun``: the same numbers again, or exactly what differs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from robustcli.cli import launch
from robustcli.cli.rerun import compare, rebuild_arguments, rerun
from robustcli.runs.run import Run
from robustcli.utils import files
from robustcli.utils.errors import UserError

CONFIG: dict[str, Any] = {"seed": 3, "resume": None, "trainer": {"max_steps": 10, "max_seconds": None, "device": "cpu"}}
OVERRIDES = ["seed=3", "trainer.max_steps=10"]
RECORDS = {"query": [0, 1, 2], "rank": pd.array([1, None, 4], dtype="Int64"), "norm": [0.1, 0.2, float("nan")]}


def make(directory: Path, **change: Any) -> Path:
    """A finished run; ``change`` sets metrics, records, config, overrides or notes of it."""
    with Run.open("train-mat", change.get("config", CONFIG), directory, change.get("overrides", OVERRIDES)) as run:
        run.note(**change.get("notes", {"data_fingerprint": "abc"}))
        metrics = {"recall": 0.1 + 0.2, "train": {"steps": 10.0, "seconds": 1.5, "samples_per_second": 80.0}}
        run.write_metrics(metrics | change.get("metrics", {}), pd.DataFrame())
        run.write_records(pd.DataFrame(RECORDS | change.get("records", {})))
        run.finish(0.5)
    return directory


def fake_launch(**change: Any) -> tuple[Callable[[str, Sequence[str]], int], list[Sequence[str]]]:
    calls: list[Sequence[str]] = []

    def fake(command: str, argv: Sequence[str], *, trusted: bool) -> int:
        calls.append([command, *argv])
        place = next(word.partition("=")[2].strip("'") for word in argv if word.startswith("hydra.run.dir="))
        make(Path(place), **change)
        return 0

    return fake, calls


def test_equal_run_is_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, calls = fake_launch(metrics={"train": {"steps": 10.0, "seconds": 9.9, "samples_per_second": 1.0}})
    monkeypatch.setattr(launch, "launch", fake)
    assert rerun(make(tmp_path / "old"), tmp_path / "new") == 0
    assert calls[0][:3] == ["train-mat", "seed=3", "trainer.max_steps=10"]
    out = capsys.readouterr().out
    assert "identical: 3 metrics and 3 records" in out and "differ" not in out


def test_changed_metric_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "launch", fake_launch(metrics={"recall": 0.3})[0])
    assert rerun(make(tmp_path / "old"), tmp_path / "new") == 1
    out = capsys.readouterr().out
    assert "recall" in out and "0.30000000000000004" in out and "different: 1" in out


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ({"norm": [0.1, 0.2000000001, float("nan")]}, "records: norm (1 rows, first 1)"),
        ({"norm": [0.1, 0.2, 0.3]}, "records: norm (1 rows, first 2)"),
        ({"rank": pd.array([1, 7, 4], dtype="Int64")}, "records: rank (1 rows, first 1)"),
        ({"query": [0.0, 1.0, 2.0]}, "records: query"),
        ({"extra": [1, 2, 3]}, "records: extra"),
        ({key: values[:2] for key, values in RECORDS.items()}, "records: rows"),
    ],
)
def test_changed_record_is_found(tmp_path: Path, records: dict[str, Any], named: str) -> None:
    found = compare(make(tmp_path / "old"), make(tmp_path / "new", records=records))
    assert [name for name, _, _ in found.numbers] == [named]
    assert not found.identical


def test_missing_records_are_found(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new")
    (new / "records.parquet").unlink()
    assert compare(old, new).numbers == [("records.parquet", "present", "absent")]
    (old / "records.parquet").unlink()
    assert compare(old, new).identical


def test_drift_of_config_and_surroundings_is_told_without_blame(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new", config=CONFIG | {"attacks": "standard"})
    manifest = files.read_json(new / "manifest.json")
    manifest["torch"]["cpu_capability"], manifest["packages"]["torch"] = "AVX2", "0.1"
    manifest["code"]["dirty"], manifest["data_fingerprint"] = "changed", "xyz"
    manifest["machine"]["host"] = "elsewhere"
    files.write_json(new / "manifest.json", manifest)
    found = compare(old, new)
    assert found.identical
    assert found.config == [("attacks", "absent", "standard")]
    names = {name for name, _, _ in found.surroundings}
    assert names == {"torch.cpu_capability", "packages.torch", "code.dirty", "data_fingerprint"}


def test_training_by_the_clock_is_rebuilt_by_its_steps(tmp_path: Path) -> None:
    timed = CONFIG | {"trainer": {"max_steps": 500, "max_seconds": 60, "device": "cpu"}}
    overrides = ["trainer.max_seconds=60", "+trainer.max_steps=500", "seed=3", "resume=x", "hydra.run.dir=y"]
    old = make(tmp_path / "old", config=timed, overrides=overrides)
    assert rebuild_arguments(old) == ["seed=3", "trainer.max_steps=10", "trainer.max_seconds=null"]
    new = make(tmp_path / "new", config=CONFIG)
    assert compare(old, new).config == [], "the bound was changed on purpose"


def test_steps_that_were_not_recorded_are_asked_for(tmp_path: Path) -> None:
    timed = CONFIG | {"trainer": {"max_seconds": 60}}
    with Run.open("train-mat", timed, tmp_path / "old", []) as run:
        run.finish(0.5)
    with pytest.raises(UserError, match="lacks train/steps"):
        rebuild_arguments(run.directory)


def test_directories_of_the_users_config_are_repeated(tmp_path: Path) -> None:
    old = make(tmp_path / "old")
    manifest = files.read_json(old / "manifest.json")
    manifest["command_line"] = ["robustcli", "train-mat", "--config-dir", "mine", "seed=3", "--config-dir=other"]
    files.write_json(old / "manifest.json", manifest)
    assert rebuild_arguments(old)[:3] == ["--config-dir", "mine", "--config-dir=other"]


def test_relative_paths_hold_from_where_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    make(tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    seen: list[Path] = []
    monkeypatch.setattr(launch, "launch", lambda command, argv, trusted: seen.append(Path.cwd()) or 1)
    assert rerun(Path("old")) == 1
    assert seen == [tmp_path / "work"] and Path.cwd() == tmp_path
    assert (tmp_path / "outputs" / "rerun").is_dir()


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 1), (130, 130), (143, 143)])
def test_rebuilding_that_did_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: int
) -> None:
    monkeypatch.setattr(launch, "launch", lambda command, argv, trusted: code)
    assert rerun(make(tmp_path / "old"), tmp_path / "new") == expected


def test_what_is_no_finished_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        rerun(tmp_path)
    (make(tmp_path / "old") / "DONE").unlink()
    with pytest.raises(UserError, match="is not finished"):
        rerun(tmp_path / "old")
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({}))
    with pytest.raises(UserError, match="is a sweep"):
        rerun(tmp_path)
