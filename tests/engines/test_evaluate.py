"""``evaluate``: what a user writes of attacks and threat models is what runs, or is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from robustcli.cli.launch import launch
from robustcli.models import load_classifier, save_weights

DIGITS = ["dataset=digits", "model=digits", "evaluation.limit=32", "evaluation.eps_curve=[]", "diagnostics=off"]
WIDE = "threat.eps=32/255"


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


def test_a_curve_of_all_attacks_is_reported_for_all(tmp_path: Path) -> None:
    words = ["evaluation.eps_curve=[0.5,1]", "evaluation.curve_attack=all", "attacks=none"]
    two = ["+attack@attacks.fgsm=fgsm", "+attack@attacks.pgd=pgd"]
    figures = judged(tmp_path / "run", WIDE, *words, *two)
    curve = {name.split("/")[1] for name in figures if "@" in name}
    assert curve == {f"{attack}@{eps}" for attack in ("fgsm", "pgd", "worst") for eps in ("0.062745", "0.12549")}
    at = {name: figures[f"model/{name}/image_to_class/recall_at_1"] for name in curve}
    for eps in ("0.062745", "0.12549"):
        assert at[f"worst@{eps}"] <= min(at[f"fgsm@{eps}"], at[f"pgd@{eps}"])
    assert at["pgd@0.12549"] == figures["model/pgd/image_to_class/recall_at_1"]
    assert "each attack" in (tmp_path / "run" / "report.md").read_text()


CAPTIONS = ["threat=text", "attack=words", "attack.search=hotflip", "candidates.table={0}/table.json"]
ALPHAS = ["dataset=digits", "model=digits", "attack=fgsm", "purifier=mlvgm", "purifier.alphas={0}/alphas"]
SMALL = ["attacks=none", "evaluation.limit=8", "evaluation.eps_curve=[]", "diagnostics=off"]
FAST = ["purifier.draws=1", "evaluation.access=[static]", "evaluation.fresh=1"]


@pytest.mark.parametrize(
    ("words", "file", "before", "after", "said"),
    [
        (
            [*ALPHAS, *SMALL, *FAST],
            "alphas/alphas.json",
            "[0, 0, 0, 0, 0, 1]",
            "[0, 0, 0, 0, 0, 0.5]",
            "weights model+mlvgm",
        ),
        ([*CAPTIONS, *SMALL], "table.json", '{"red": ["blue"]}', '{"red": ["green"]}', "candidates"),
    ],
    ids=["alphas", "words"],
)
def test_a_resumed_run_refuses_another_state_of_a_file(
    words: list[str],
    file: str,
    before: str,
    after: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One table must not mix the attacks of two purifiers or of two lists of words."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(before)
    interrupt(words, tmp_path, monkeypatch)
    (tmp_path / file).write_text(after)
    assert launch("evaluate", [f"resume={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "is not what" in error and "began with (its fingerprint differs)" in error
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    kind, _, name = said.partition(" ")
    assert manifest[kind] and (not name or name in manifest[kind])
    (tmp_path / file).write_text(before)
    assert launch("evaluate", [f"resume={tmp_path / 'run'}"]) == 0


def test_a_resumed_run_refuses_another_surrogate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surrogate, model = tmp_path / "surrogate.safetensors", load_classifier("digits")
    save_weights(model, surrogate)
    interrupt([*DIGITS, "attacks=none", "attack=fgsm", f"evaluation.surrogate={surrogate}"], tmp_path, monkeypatch)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    save_weights(model, surrogate)
    assert launch("evaluate", [f"resume={tmp_path / 'run'}"]) == 2
    assert "files evaluation.surrogate is not what" in capsys.readouterr().err
    assert "evaluation.surrogate" in json.loads((tmp_path / "run" / "manifest.json").read_text())["weights"]


def interrupt(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run as Ctrl-C does, when everything is loaded."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    named = [word.replace("{0}", str(place)) for word in words]
    with monkeypatch.context() as patch:
        patch.setattr("robustcli.engines.evaluate.collect_records", stop)
        assert launch("evaluate", [*named, f"hydra.run.dir={place / 'run'}"]) == 130
