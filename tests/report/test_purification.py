"""The table of a purification paper over a sweep of the command line."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from robustcli.cli.launch import launch
from robustcli.cli.main import app

SMALL = [
    "protocol=smoke",
    "evaluation.eps_curve=[0.5,1]",
    "evaluation.limit=6",
    "evaluation.resamples=20",
    "evaluation.access=[adaptive]",
    "purifier.draws=1",
    "baselines=null",
    "diagnostics=off",
    "~attacks.deepfool",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["robustcli", "--multirun"])
        words = ["--multirun", "purifier.alphas=none,linear", *SMALL, f"hydra.sweep.dir={directory}"]
        assert launch("purify", words) == 0
    return directory


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *words], env={"COLUMNS": "300"})
    return result.exit_code, result.output


def test_a_sweep_gives_the_papers_table_and_one_picture(sweep: Path, tmp_path: Path) -> None:
    code, text = said(str(sweep), "--form", "purification", "--out", str(tmp_path / "table"))
    assert code == 0 and "right at first" in text and "NO ADAPTIVE" not in text, text
    table = pd.read_csv(tmp_path / "table" / "table.csv")
    assert set(table["attack"]) == {"no attack", "C&W 0.5", "C&W 1", "PGD 0.5", "PGD 1", "worst 0.5", "worst 1"}
    assert set(table["purifier.alphas"]) == {"none", "linear"} and set(table["row"]) == {"none", "purifier"}
    assert set(table["counted over"]) == {"all images", "right at first"}
    for number in (0, 1):
        metrics = pd.read_csv(sweep / str(number) / "metrics.csv").set_index(["model", "attack", "access", "eps"])
        alphas = ("none", "linear")[number]
        own = table[(table["purifier.alphas"] == alphas) & (table["row"] == "purifier")]
        cells = own[own["counted over"] == "all images"].set_index("attack")["recall_at_1"]
        for eps in (0.5, 1.0):
            known = metrics.loc[("purifier", "worst", "worst", eps), "recall_at_1"]
            assert cells[f"worst {eps:g}"] == pytest.approx(float(known))
    for name in ("table.md", "table.tex", "table.html", "bounds.png", "bounds.svg"):
        assert (tmp_path / "table" / name).stat().st_size > 100
    tex = (tmp_path / "table" / "table.tex").read_text()
    assert r"C\&W 0.5" in tex and r"\midrule" in tex


def test_the_papers_counting_stands_beside_it(sweep: Path) -> None:
    code, text = said(str(sweep), "--form", "purification", "--measure", "claimed")
    assert code == 0 and "claimed" in text and "PGD" not in text and "C&W 0.5" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "paper"], "choose one of runs, purification"),
        (["--form", "purification", "--measure", "map_at_r"], "choose one of recall_at_1, claimed"),
        (["--form", "purification", "--published", "x.csv"], "--published has no place"),
    ],
)
def test_mistakes(words: list[str], message: str, sweep: Path) -> None:
    code, text = said(str(sweep), *words)
    assert code == 2 and message in " ".join(text.split())


def test_runs_without_a_defence_have_no_such_table(tmp_path: Path) -> None:
    words = ["dataset=digits", "model=digits", "attack=fgsm", "attacks=none", "evaluation.limit=4", "diagnostics=off"]
    assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    code, text = said(str(tmp_path), "--form", "purification")
    assert code == 2 and "judged a purifier" in " ".join(text.split())


def test_bounds_of_two_norms_are_no_one_table(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(sweep / "0", other)
    config = (other / "config.yaml").read_text().replace("norm: l2", "norm: linf")
    (other / "config.yaml").write_text(config)
    code, text = said(str(sweep), str(other), "--form", "purification")
    assert code == 2 and "L2 and L-inf norms" in " ".join(text.split()), text
