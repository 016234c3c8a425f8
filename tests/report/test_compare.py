"""Two models on the same queries: the difference is paired, and what was not the same is refused."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from robustcli import metrics
from robustcli.cli.launch import launch
from robustcli.cli.main import app
from robustcli.report.compare import compare
from robustcli.utils.errors import UserError

WORDS = [
    "dataset=digits",
    "attacks=none",
    "attack=fgsm",
    "evaluation.limit=24",
    "evaluation.eps_curve=[]",
    "diagnostics=off",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the shipped model at two radii and on other images, and one with an untrained model beside it."""
    folder = tmp_path_factory.mktemp("runs")
    two = "models={shipped: digits, drawn: {name: digits, checkpoint: null, pretrained: random}}"
    wanted: dict[str, Sequence[str]] = {
        "two": [two, "threat.eps=8/255"],
        "again": ["model=digits", "threat.eps=8/255"],
        "farther": ["model=digits", "threat.eps=16/255"],
        "fewer": ["model=digits", "threat.eps=8/255", "evaluation.limit=12"],
        "validation": ["model=digits", "threat.eps=8/255", "evaluation.split=val"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        for name, words in wanted.items():
            assert launch("evaluate", [*WORDS, *words, f"hydra.run.dir={folder / name}"]) == 0
    return folder


def test_the_difference_is_that_of_the_records_and_its_interval_is_paired(runs: Path) -> None:
    grid = compare(runs / "two", "shipped", runs / "two", "drawn")
    records = pd.read_parquet(runs / "two" / "records.parquet")
    attacked = records[records["attack"] == "fgsm"].sort_values("query_id")
    a, b = (torch.tensor(attacked.loc[attacked["model"] == name, "mean"].to_numpy()) for name in ("shipped", "drawn"))
    gap = metrics.bootstrap_difference(b, a, torch.arange(len(a)))
    assert gap.mean is not None and gap.low is not None and gap.high is not None
    row = next(list(row) for row in grid.rows if row[0] == "FGSM")
    assert row[2:5] == [f"{100 * a.mean():.1f}", f"{100 * b.mean():.1f}", f"{100 * gap.mean:+.1f}"]
    assert row[5] == f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    assert [int(row[6]), int(row[7])] == [int((a > b).sum()), int((b > a).sum())]


def test_a_model_does_not_differ_from_itself_in_another_run(runs: Path) -> None:
    grid = compare(runs / "two", "shipped", runs / "again", None)
    assert {tuple(row[4:]) for row in grid.rows} == {("+0.0", "+0.0 to +0.0", "0", "0")}
    assert list(grid.columns)[2:4] == ["shipped", "model"]


def test_models_of_one_name_are_a_and_b_which_a_note_explains(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "again", tmp_path / "a-run-with-a-long-name")
    grid = compare(runs / "again", None, tmp_path / "a-run-with-a-long-name", None)
    assert list(grid.columns)[2:4] == ["A", "B"] and list(grid.columns)[6:] == ["only A", "only B"]
    assert grid.note.startswith("A: again: model; B: a-run-with-a-long-name: model. Interval")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (("two", "shipped"), ("farther", None), "the threat models differ .threat.eps is 8/255 and 16/255"),
        (("two", "shipped"), ("validation", None), "different data"),
        (("two", "shipped"), ("fewer", None), "not asked the same: 12 queries"),
        (("two", "mine"), ("again", None), "choose one of shipped, drawn"),
        (("again", None), ("again", None), "are the same model"),
    ],
)
def test_what_cannot_be_compared_is_told(
    runs: Path, first: tuple[str, str | None], second: tuple[str, str | None], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        compare(runs / first[0], first[1], runs / second[0], second[1])


def test_from_the_command_line(runs: Path) -> None:
    done = CliRunner().invoke(app, ["compare", f"{runs / 'two'}:shipped", f"{runs / 'two'}:drawn"])
    assert done.exit_code == 0 and "drawn against shipped" in done.output and "at 8/255" in done.output
    done = CliRunner().invoke(app, ["compare", f"{runs / 'two'}:shipped", str(runs / "none")])
    assert done.exit_code == 2 and "holds no finished run" in done.output
