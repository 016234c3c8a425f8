"""``evaluate``: what a user writes of attacks and threat models is what runs, or is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from robustcli.cli.launch import launch
from robustcli.data import Scenes
from robustcli.diagnostics import RetrievalSubject
from robustcli.models import load_classifier, save_weights

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
    beside = judged(
        tmp_path / "beside",
        WIDE,
        "attacks=standard",
        "attacks.apgd_ensemble.steps=5",
        "attack=square",
        "attack.queries=30",
    )
    assert attacks_of(alone) == {"square"} and attacks_of(beside) == {"pgd", "apgd_ensemble", "square"}
    name = "model/square/image_to_class/recall_at_1"
    assert alone[name] == beside[name]
    assert attacks_of(judged(tmp_path / "none", "attacks=none")) == set()


def test_no_attack_at_all_leaves_the_clean_row_whatever_the_curve(tmp_path: Path) -> None:
    words = [word for word in DIGITS if not word.startswith("evaluation.eps_curve")]
    assert launch("evaluate", [*words, "attacks=none", f"hydra.run.dir={tmp_path / 'none'}"]) == 0
    assert attacks_of(json.loads((tmp_path / "none" / "metrics.json").read_text())) == set()


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


def test_what_is_done_to_the_inputs_stands_under_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, blue in (("train", 0), ("val", 200), ("test", 0)):
        for number in range(4):
            path = tmp_path / split / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (0, 60 * number, blue)).save(path)
    words = ["dataset=class_folders", f"dataset.root={tmp_path}", "dataset.classes=['0','1']", "dataset.image_size=8"]
    trained = [*words, "model=small_cnn", "trainer=smoke", "trainer.batch_size=4", "evaluation.resamples=10"]
    place = tmp_path / "trained"
    assert launch("train-classifier", [*trained, "diagnostics=off", "attacks=none", f"hydra.run.dir={place}"]) == 0
    told = [
        "4 of 4 images are resized to 8 x 8 pixels (crop), from 10 x 12.",
        "Of the 4 images of test stand 4 also in train, byte for byte.",
    ]
    shown, report = capsys.readouterr().out, (place / "report.md").read_text()
    assert all(sentence in shown for sentence in told)
    assert "## Inputs" in report and all(f"- {sentence}" in report for sentence in told)


def test_random_weights_are_judged_where_they_are_asked_for(tmp_path: Path) -> None:
    small = ["dataset=scenes", "dataset.test=16", "attacks=none", "diagnostics=off", "evaluation.resamples=10"]
    for model in ("tiny", "small_cnn"):
        data = small if model == "tiny" else [*DIGITS[:1], "evaluation.limit=32", *small[2:]]
        words = [
            *data,
            f"model={model}",
            "model.checkpoint=null",
            "+model.pretrained=random",
            "evaluation.eps_curve=[]",
        ]
        assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / model}"]) == 0
        figures = json.loads((tmp_path / model / "metrics.json").read_text())
        assert max(value for name, value in figures.items() if name.endswith("recall_at_1")) < 0.5


@pytest.mark.filterwarnings("ignore:Glyph")  # of the examples, whose captions are drawn in a font without Han
def test_words_are_no_budget_of_captions_without_blanks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caption = "\u4e00\u53ea\u68d5\u8272\u7684\u72d7"
    lines = ["image,caption"]
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{caption}{chr(0x4E10 + number)}")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    data = [
        "dataset=table",
        f"dataset.table='{tmp_path}/{{split}}.csv'",
        f"dataset.root={tmp_path}",
        "dataset.image_size=32",
    ]
    bare = ["model.checkpoint=null", "+model.pretrained=random", "diagnostics=off", "evaluation.resamples=10"]
    words = [*data, *bare, "evaluation.eps_curve=[]"]
    assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / 'a'}"]) == 2
    error = capsys.readouterr().err
    assert "8 of 8 captions of test are in a script without blanks" in error and "threat=characters" in error
    small = ["trainer=smoke", "trainer.batch_size=4", "diagnostics=off", "model.checkpoint=null"]
    assert launch("train-mat", [*data, *small, f"hydra.run.dir={tmp_path / 'b'}"]) == 2
    assert "choose threat=characters" in capsys.readouterr().err
    for number, allowed in enumerate(("attacks=none", "threat=characters")):
        attack = ["attacks=none", "attack=characters"] if allowed == "threat=characters" else []
        place = f"hydra.run.dir={tmp_path / str(number)}"
        assert launch("evaluate", [*words, allowed, *attack, place]) == 0, capsys.readouterr().err


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
    suite = ["attacks=none", "attack=words", "+attack@attacks.again=words"]
    assert launch("evaluate", [*suite, f"candidates.table={table}", *FAILING, f"hydra.run.dir={run}"]) == 0
    assert "again, words: candidates for 0.0% of the words; 0 of " in (run / "report.md").read_text()
    found = pd.read_csv(run / "diagnostics.csv").set_index("check")
    assert found.loc["coverage", "status"] == "suspect"


@pytest.fixture
def captioned(tmp_path: Path) -> list[str]:
    """Overrides for 8 pictures of a user's own with captions of words that the shipped model knows."""
    scenes = Scenes(split="test", size=32, test=8)
    rows = []
    for number, image in enumerate(scenes.images(torch.arange(8))):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": [scenes.captions[int(scenes.captions_of()[number][0])]]})
    (tmp_path / "own_test.json").write_text(json.dumps(rows))
    own = [f"dataset.annotations={tmp_path / 'own_test.json'}", f"dataset.root={tmp_path}", "dataset.image_size=32"]
    return ["dataset=karpathy", *own, "diagnostics=off", "evaluation.resamples=10", f"hydra.run.dir={tmp_path / 'run'}"]


@pytest.mark.parametrize(
    "words", [["attacks=none"], ["attacks=none", "~candidates"], ["attacks=none", "attack=fgsm", "~candidates"]]
)
def test_what_is_not_used_is_not_asked_for(words: list[str], captioned: list[str], tmp_path: Path) -> None:
    assert launch("evaluate", [*captioned, *words]) == 0
    assert "model/clean/image_to_text/recall_at_1" in json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attack=words"], "brings no synonyms: choose candidates=masked_lm"),
        (["attack=words"], "attacks on images alone need none"),
        (["attack=words", "~candidates"], "candidates is left out, but an attack replaces words: choose"),
        (["attack=fgsm", "candidates=neighbours"], "nothing would read it"),
    ],
)
def test_a_source_of_words_is_asked_for_where_words_are_replaced(
    words: list[str], message: str, captioned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("evaluate", [*captioned, "attacks=none", *words]) == 2
    assert message in capsys.readouterr().err
