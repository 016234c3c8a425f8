"""Directories of others: nothing that they name is run, and nothing that is damaged in them ends in a traceback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustcli.cli.launch import guarded, launch
from robustcli.cli.rerun import rerun
from robustcli.runs.run import Run
from robustcli.utils import files

HOSTILE = [
    ["model._target_=os.system", "+model.command='touch touched'"],
    ["model._target_=mine.build"],
    ["defense._target_=torch.load", "+defense.f=evil.pt", "+defense.weights_only=false"],
    ["+hydra.callbacks.evil={_target_: mine.Callback}"],
    ["hydra.searchpath=[file:///tmp]"],
    ["hydra.job_logging.root.level={'()': os.system}"],
    ["+model@hydra.callbacks.evil=tiny"],
]


def foreign(directory: Path, overrides: list[str]) -> Path:
    """The directory of a finished run with these overrides, whose code cannot be found."""
    with Run.open("train-mat", {"seed": 1}, directory, ["attacks=none", *overrides]) as run:
        run.write_metrics({"recall": 0.5})
        run.finish(0.5)
    return directory


@pytest.fixture
def no_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The commands that reached a shell; `mine` is a module that tells of its import."""
    commands: list[str] = []
    monkeypatch.setattr(os, "system", commands.append)
    (tmp_path / "mine.py").write_text("import os\nos.system('imported')\ndef build(): os.system('built')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return commands


@pytest.mark.parametrize("overrides", HOSTILE, ids=lambda words: words[0])
@pytest.mark.parametrize("way", ["rerun", "resume"])
def test_the_directory_of_another_runs_nothing(
    no_shell: list[str], overrides: list[str], way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    old = foreign(Path("old"), overrides)
    before = sorted(Path().rglob("*"))
    code = launch("train-mat", [f"resume={old}"]) if way == "resume" else guarded(lambda: rerun(old))
    err = capfd.readouterr().err
    assert code == 2 and no_shell == [] and "--trust" in err and err.count("\n") == 1, err
    assert overrides[0].partition("=")[2] in err or overrides[0] in err
    assert sorted(Path().rglob("*")) == before


def test_a_sweep_of_another_runs_nothing(no_shell: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("sweep").mkdir()
    words = {"task": ["attacks=none", "model._target_=mine.build,os.system"], "hydra": ["hydra.mode=MULTIRUN"]}
    Path("sweep/multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": words}}))
    assert launch("train-mat", ["resume=sweep"]) == 1 and no_shell == []
    assert capfd.readouterr().err.count("add --trust") == 2


def test_trust_lets_own_modules_run_and_never_the_standard_library(
    no_shell: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    old = foreign(Path("old"), ["model._target_=mine.build"])
    (old / "DONE").unlink()
    launch("train-mat", [f"resume={old}", "--trust"])
    assert no_shell == ["imported"], "the check comes to the config, which is another one here"
    capfd.readouterr()
    assert launch("train-mat", ["attacks=none", "model._target_=os.system", "+model.command=x"]) == 2
    assert "model._target_ is 'os.system', which no config may call" in capfd.readouterr().err
    assert no_shell == ["imported"]
    assert launch("train-mat", ["--trust"]) == 2


def test_a_config_directory_of_the_run_asks_for_trust(no_shell: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    old = foreign(Path("old"), [])
    manifest = files.read_json(old / "manifest.json")
    files.write_json(old / "manifest.json", manifest | {"command_line": ["robustcli", "--config-dir", "evil"]})
    assert guarded(lambda: rerun(old)) == 2 and "--config-dir" in capfd.readouterr().err


NAMES = ["overrides.yaml", "manifest.json", "config.yaml", "metrics.json", "records.parquet"]
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "of another type": lambda file: file.write_text("7"),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2]),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


WHOLE = [("records.parquet", "missing"), ("config.yaml", "truncated"), ("overrides.yaml", "truncated")]  # or may be


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    with Run.open("train-mat", {"seed": 1, "trainer": {"max_seconds": 1}}, "old", ["seed=1", "eps=2/255"]) as run:
        run.write_metrics({"train/steps": 3})
        run.write_records(pd.DataFrame({"rank": [1]}))
        run.finish(0.5)
    DAMAGES[damage](tmp_path / "old" / name)
    monkeypatch.setattr("robustcli.cli.launch.launch", lambda *words, trusted: 1)
    code, err = guarded(lambda: rerun(Path("old"))), capfd.readouterr().err
    if (name, damage) not in WHOLE:
        assert code == 2 and err.count("\n") == 1, err
    assert "Traceback" not in err
