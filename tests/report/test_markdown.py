"""The report of a run."""

from pathlib import Path
from typing import Any

import pytest

from robustcli.report.markdown import Report, command_line, provenance, render, threat_model
from robustcli.report.tables import Grid
from robustcli.runs.run import Run

GRID = Grid("Recall@1", ["model", "SGA"], [["after mat", "46.6 / 47.0\n±2.0 / ±2.1"]], "a note")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.open("train-mat", {"seed": 3, "trainer": {"device": "cpu"}}, tmp_path / "a", ["seed=3"]) as run:
        run.note(data_fingerprint={"train": "f" * 64}, weights={"start": "0123456789abcdef0123"})
        with run.phase("train"):
            pass
    return run


def test_report_holds_everything_and_names_pictures_relative(run: Run) -> None:
    report = Report(
        title="MAT on scenes",
        summary="Better.",
        threat=threat_model(norm="linf", eps="4/255", max_words=1),
        tables=[GRID],
        figures=[("Recall over eps", run.figure("eps"))],
        caveats=["One seed."],
    )
    text = render(report, run.manifest, run.directory)
    assert text.startswith("# MAT on scenes\n\nBetter.\n\n```\nrobustcli train-mat seed=3\n```\n")
    assert "| after mat | 46.6 / 47.0<br>±2.0 / ±2.1 |" in text
    assert "![Recall over eps](figures/eps.png)" in text
    assert "at most 4/255 (L-inf)" in text and "At most 1 word of" in text and "- One seed." in text
    assert "| seeds | seed 3 |" in text and "train ffffffffffffffff" in text and "start 0123456789abcdef" in text
    assert f"robustcli rerun {run.directory}" in text


def test_provenance_tells_dirty_trees_and_resumed_runs(run: Run) -> None:
    code = {"version": "1", "commit": "a" * 40, "dirty": True, "sha256": "b" * 64}
    manifest: dict[str, Any] = run.manifest | {"code": code, "sessions": run.manifest["sessions"] * 3}
    lines = provenance(manifest)
    assert lines["code"] == f"robustcli 1, {'a' * 12}, with changes that are not committed, sources sha256 {'b' * 12}"
    assert lines["resumed"] == "2 times"
    assert "not from a git tree" in provenance(manifest | {"code": code | {"commit": None, "dirty": None}})["code"]


def test_threat_model_says_what_is_not_attacked() -> None:
    nothing = threat_model()
    assert nothing[:2] == ["Images are not changed.", "Captions are not changed."]
    assert "at most 0.5 in all (L2 norm)" in threat_model(norm="l2", eps=0.5)[0]
    assert "any amount: the smallest is looked for, by the L2 norm" in threat_model(norm="l2")[0]
    with pytest.raises(ValueError, match="expected linf or l2"):
        threat_model(norm="linfinity", eps=1)


def test_command_is_quoted_for_the_shell() -> None:
    manifest = {"command": "attack", "overrides": ["dataset.root=my photos", "seed=3"]}
    assert command_line(manifest) == "robustcli attack 'dataset.root=my photos' seed=3"
