"""``evaluate``: what a user writes of attacks and threat models is what runs, or is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from robustcli.cli.launch import launch
from robustcli.diagnostics import RetrievalSubject

DIGITS = ["dataset=digits", "model=digits", "evaluation.limit=32", "evaluation.eps_curve=[]", "diagnostics=off"]
WIDE = "threat.eps=32/255"
FAILING = ["evaluation=smoke", "evaluation.eps_curve=[]", "dataset.test=16"]


def judged(place: Path, *words: str) -> dict[str, float]:
    assert launch("evaluate", [*DIGITS, *words, f"hydra.run.dir={place}"]) == 0
    figures: dict[str, float] = json.loads((place / "metrics.json").read_text())
    return figures


def attacks_of(figures: dict[str, float]) -> set[str]:
    return {name.split("/")[1] for name in figures if name.startswith("model/")} - {"clean", "worst"}


def test_an_attack_runs_alone_or_beside_a_suite(tmp_path: Path) -> None:
    alone = judged(tmp_path / "alone", WIDE, "attacks=none", "attack=square", "attack.queries=30")
    beside = judged(tmp_path / "beside", WIDE, "attacks=classes", "attack=square", "attack.queries=30")
    assert attacks_of(alone) == {"square"} and attacks_of(beside) == {"fgsm", "pgd", "apgd", "square"}
    name = "model/square/image_to_class/recall_at_1"
    assert alone[name] == beside[name]
    assert attacks_of(judged(tmp_path / "none", "attacks=none")) == set()


def test_every_key_of_the_attack_counts(tmp_path: Path) -> None:
    steps = [judged(tmp_path / str(n), WIDE, "attacks=none", "attack=pgd", f"attack.steps={n}") for n in (1, 3, 20)]
    robust = [each["model/pgd/image_to_class/recall_at_1"] for each in steps]
    assert robust[0] > robust[1] > robust[2]
    queries = [each["model/pgd/image_to_class/queries_mean"] for each in steps]
    assert queries[0] < queries[1] < queries[2]


def test_no_attack_of_a_suite_leaves_the_threat_model(tmp_path: Path) -> None:
    judged(tmp_path / "a", "+attack@attacks.ta=torchattacks", "attacks.ta.name=PGD", "threat.eps=3/255")
    records = pd.read_parquet(tmp_path / "a" / "records.parquet")
    norms = records[records["attack"] != "clean"].groupby("attack")["norm"].max()
    assert set(norms.index) >= {"ta", "pgd"} and (norms <= 3 / 255 * (1 + 1e-6)).all() and (norms > 2.9 / 255).all()
    assert "3/255" in (tmp_path / "a" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+attack@attacks.ta=torchattacks", "+attacks.ta.params.eps=64/255"], "threat.eps"),
        (["attack=pgd", "+attack.eps=64/255"], "threat.eps=64/255"),
        (["attacks.pgd.eps=64/255"], "threat.eps=64/255"),
        (["threat.words=2"], "threat.words=2: nothing would read it"),
        (["attack.steps=3"], "attack"),
        (["trainer=smoke"], "evaluate has no group 'trainer'"),
    ],
)
def test_what_nothing_would_read_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("evaluate", [*DIGITS, *words, f"hydra.run.dir={tmp_path / 'm'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "m" / "records.parquet").exists(), error


def test_diagnostics_that_fail_lose_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such gradient")

    monkeypatch.setattr(RetrievalSubject, "__init__", broken)
    run = tmp_path / "run"
    assert launch("evaluate", ["attacks=none", "attack=words", *FAILING, f"hydra.run.dir={run}"]) == 0
    assert (run / "DONE").exists() and (run / "report.md").exists()
    found = pd.read_csv(run / "diagnostics.csv")
    assert set(found["status"]) == {"not run"}
    assert found["measured"].str.contains("it failed: RuntimeError: no such gradient").all()


def test_words_without_candidates_are_told_under_the_table(tmp_path: Path) -> None:
    table, run = tmp_path / "table.json", tmp_path / "run"
    table.write_text('{"automobile": ["car"]}')
    words = ["attacks=none", "attack=words", f"candidates.table={table}", *FAILING, f"hydra.run.dir={run}"]
    assert launch("evaluate", words) == 0
    assert "words: candidates for 0.0% of the words; 0 of " in (run / "report.md").read_text()
    found = pd.read_csv(run / "diagnostics.csv").set_index("check")
    assert found.loc["coverage", "status"] == "suspect"
