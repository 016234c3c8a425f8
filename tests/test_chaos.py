"""What `tests.chaos` takes for a fault; ``make chaos`` kills for half an hour."""

import signal
from pathlib import Path

import pandas as pd
import pytest

from robustcli.runs.run import Run

from . import chaos

STOPPED = "go on with: robustcli evaluate resume=run\nstopped by SIGTERM\n"


def ended(
    code: int | None, sent: signal.Signals | None = signal.SIGTERM, err: str = STOPPED, **more: bool
) -> list[str]:
    told = chaos.Session([], sent, code, "", err, **{"begun": True, **more})
    return list(told.faults())


def test_an_end_in_order_is_no_fault() -> None:
    assert ended(143) == ended(0, None, "") == ended(-9, signal.SIGKILL, "") == []
    assert ended(-15, err="", begun=False) == ended(0, err="", ended=True) == []


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (ended(0), "exit code 0 after SIGTERM"),
        (ended(1, err="error: nonsense"), "exit code 1 after SIGTERM"),
        (ended(None), "exit code None after SIGTERM"),
        (ended(137, signal.SIGKILL), "exit code 137 after SIGKILL"),
        (ended(1, None, ""), "exit code 1 without a signal"),
        (ended(143, err="go on with: resume=run"), "no line that it was stopped"),
        (ended(143, err="stopped by SIGTERM"), "no line that says how to go on"),
        (ended(-15, err=""), "ended by the signal itself, though a run was open"),
        (ended(143, err=f'  File "/a/robustcli/cli/job.py", line 1\n{STOPPED}'), "a traceback on the screen"),
    ],
)
def test_anything_else_is_one(faults: list[str], said: str) -> None:
    assert faults == [said]


def made(root: Path, value: float = 0.5) -> chaos.Place:
    place = chaos.Place(root)
    with Run.open("evaluate", {"seed": 0}, place.run, []) as run:
        run.write_records(pd.DataFrame({"rank": [value]}))
        run.checkpoint_path("last").write_text(f"{value}")
        run.write_metrics({"a": value, "seconds": float(len(root.name))})
    return place


def test_runs_are_compared_number_by_number_and_file_by_file(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole")
    assert list(chaos.differences(whole, made(tmp_path / "another"))) == []
    cut = made(tmp_path / "cut", 0.25)
    (cut.cache / ".tmp-1").touch()
    (cut.run / "parts").mkdir()
    assert list(chaos.differences(whole, cut)) == [
        "run/parts is left over",
        "cache/.tmp-1 is left over",
        "a is 0.25 and not 0.5",
        "records: rank (1 rows, first 0) is 0.25 and not 0.5",
        "checkpoints/last.safetensors has other bytes",
    ]
    (cut.run / "DONE").unlink()
    assert ". is not done" in list(chaos.differences(whole, cut))
