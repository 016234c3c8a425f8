"""Parts of a report that fail cost neither numbers nor other parts."""

import json
from pathlib import Path
from typing import Any

import pytest

from robustcli.cli.launch import launch
from robustcli.report import pictures
from robustcli.report.album import Album
from robustcli.runs.run import Run

SMALL = ["evaluation=smoke", "evaluation.eps_curve=[0,2/255]", "dataset.test=16", "diagnostics=off", "attack=words"]


def test_names_of_a_user_have_pictures_of_their_own(tmp_path: Path) -> None:
    run = Run.open("evaluate", {}, tmp_path / "run", [])
    album = Album(run)
    for name in ("examples_a b", "examples_a_b", "examples_é", "examples_" + "x" * 300, "examples_v1.0"):
        album.draw(name, name, lambda path: path.write_bytes(b""))  # type: ignore[arg-type, return-value]
    paths = [picture.path for picture in album.pictures]
    assert not album.failures and len(set(paths)) == 5
    assert all(path.exists() and path.suffix == ".png" for path in paths)


def test_a_picture_or_a_table_that_fails_is_a_line_and_the_numbers_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no such *font*\nat all")

    monkeypatch.setattr(pictures, "examples", broken)
    monkeypatch.setattr("robustcli.report.results.transfers", broken)
    checkpoints = "checkpoints={a: shipped, b: shipped}"
    words = ["evaluate", [*SMALL, "attacks=none", checkpoints, "transfer=true", f"hydra.run.dir={tmp_path / 'run'}"]]
    assert launch(*words) == 0  # type: ignore[arg-type]
    run, out = tmp_path / "run", " ".join(capsys.readouterr().out.split())
    assert (run / "DONE").exists() and "a/words/image_to_text/recall_at_1" in json.loads(
        (run / "metrics.json").read_text()
    )
    report = (run / "report.md").read_text()
    for part in ("picture examples_a", "picture examples_b", "transfer table"):
        assert f"NOT MADE: the {part}, because of an error (ValueError: no such *font*)" in out
        assert f"- NOT MADE: the {part}, because of an error (ValueError: no such \\*font\\*)" in report
    assert "figures/recall_over_eps.png" in report and "examples_a.png" not in report
    assert "Traceback" in (run / "log.txt").read_text()
