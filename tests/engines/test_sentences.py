"""Sentences before classes, from the command line: the text tower of a dual encoder under attacks on texts."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.attacks import CharacterEdits
from robustcli.cli.launch import launch
from robustcli.report.compare import compare
from robustcli.utils.errors import UserError

from ..colours import COLOURS, sentences, write_pictures, write_table

FIGURE = "text_to_class/recall_at_1"
TYPOS = ["threat=characters", "threat.characters=1", "attacks=none", "attack=typos", "attack.positions=4"]
FEW = ["model=tiny", "diagnostics=off", "evaluation.resamples=20", "dataset.limit=10"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    table = write_table(tmp_path / "colours.csv")
    return ["dataset=sentences", f"dataset.table={table}", f"dataset.classes=[{','.join(COLOURS)}]", *FEW]


def run(place: Path, command: str, *words: str) -> dict[str, float]:
    assert launch(command, [*words, f"hydra.run.dir={place}"]) == 0
    figures: dict[str, float] = json.loads((place / "metrics.json").read_text())
    return figures


def test_characters_are_edited_and_the_run_tells_all_of_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    leaf = ["attack=characters_leaf", "attack.positions=2", "attack.objective=margin", "diagnostics=auto"]
    found = run(place, "evaluate", *words, *TYPOS[:3], *leaf, "dataset.limit=6")
    printed, report = " ".join(capsys.readouterr().out.split()), (place / "report.md").read_text()
    clean, robust = found[f"model/clean/{FIGURE}"], found[f"model/characters_leaf/{FIGURE}"]
    assert clean > 0.8 > robust and found[f"chance/{FIGURE}"] == 0.2
    for told in (
        "Accuracy in percent, text to class",
        "Zero-shot: 5 classes in 1 template (of colours), such as 'red'.",
    ):
        assert told in printed and told in report
    for told in (
        "Classes are not changed.",
        "At most 1 character of a sentence may be replaced",
        "6 sentences of 5 classes",
        "some sentences under characters",
        "sentences 6, classes 5",
    ):
        assert told in report, told
    assert "mAP" not in report and "image to text" not in report and "NOT MADE" not in report
    assert "Diagnostics" in printed and "model, characters_leaf: ok" in printed
    records = pd.read_parquet(place / "records.parquet")
    attacked = records[records["attack"] == "characters_leaf"]
    assert attacked["label"].tolist() == [colour for _, colour in sentences()[:6]]
    edited = attacked[attacked["edits"] == 1]
    assert len(edited) > 2 and (edited["caption"] != [sentences()[int(row)][0] for row in edited["query_id"]]).all()
    manifest: dict[str, Any] = json.loads((place / "manifest.json").read_text())
    assert manifest["class_texts"] == {"names": list(COLOURS), "templates": ["{}"], "origin": "of colours"}


def test_classes_are_texts_by_templates_and_names_or_pictures(words: list[str], tmp_path: Path) -> None:
    clean = [*words, "attacks=none"]
    texts = ["templates=['something {}', 'a {} shape']", "class_names=[crimson, jade, navy, golden, violet]"]
    assert run(tmp_path / "texts", "evaluate", *clean, *texts)[f"model/clean/{FIGURE}"] > 0.7
    swapped = "class_names=[green, red, yellow, blue, pink]"
    assert run(tmp_path / "swapped", "evaluate", *clean, swapped)[f"model/clean/{FIGURE}"] < 0.4
    pictures = [f"dataset.class_images={write_pictures(tmp_path / 'pictures')}", "dataset.image_size=32"]
    shown = run(tmp_path / "pictures_run", "evaluate", *words, *pictures, *TYPOS)
    assert shown[f"model/clean/{FIGURE}"] > 0.6 > shown[f"model/typos/{FIGURE}"]
    report = (tmp_path / "pictures_run" / "report.md").read_text()
    assert "Classes are pictures: " in report and "Zero-shot" not in report


def test_words_surrogates_and_transfer_stand_in_the_same_pipeline(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = ["threat=text", "candidates=neighbours", "attacks=standard", "checkpoints={a: shipped, b: shipped}"]
    found = run(tmp_path / "words", "evaluate", *words, *edits, "transfer=true")
    assert found[f"a/words/{FIGURE}"] == found[f"b/words/{FIGURE}"] < found[f"a/clean/{FIGURE}"]
    transfer = pd.read_csv(tmp_path / "words" / "transfer.csv")
    assert set(transfer["direction"]) == {"text_to_class"} and len(transfer) == 4
    assert "Transfer of words in percent, text to class" in " ".join(capsys.readouterr().out.split())
    right = round(10 * found[f"a/clean/{FIGURE}"])
    assert (transfer["samples"] == right).all() and (transfer["success_rate"] > 0.3).all()
    moved = run(tmp_path / "moved", "evaluate", *words, *TYPOS, "evaluation.surrogate=shipped")
    own = run(tmp_path / "own", "attack", *words, *TYPOS[:2], *TYPOS[3:])
    assert moved[f"model/typos/{FIGURE}"] == own[f"model/typos/{FIGURE}"]
    assert not (tmp_path / "own" / "adversarial").exists()
    with pytest.raises(UserError, match="threat models differ"):
        compare(tmp_path / "own", None, tmp_path / "words", "a")
    grid = compare(tmp_path / "words", "a", tmp_path / "words", "b")
    assert [row[1] for row in grid.rows] == ["text to class"] * 2


def test_a_stopped_run_goes_on_at_the_sentences_and_ends_in_the_same_records(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, given = tmp_path / "whole", tmp_path / "cut", [*words, *TYPOS, "evaluation.batch_size=4"]
    run(whole, "evaluate", *given)
    edit, calls = CharacterEdits.edit, list[int]()

    def counted(self: CharacterEdits, *arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        if calls == [4, 4]:
            raise KeyboardInterrupt
        return edit(self, *arguments)

    monkeypatch.setattr(CharacterEdits, "edit", counted)
    assert launch("evaluate", [*given, f"hydra.run.dir={cut}"]) == 130
    assert launch("evaluate", [f"resume={cut}"]) == 0
    assert calls == [4, 4, 4, 2]  # the first chunk was kept
    pd.testing.assert_frame_equal(*(pd.read_parquet(place / "records.parquet") for place in (whole, cut)))


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        (
            "evaluate",
            [],
            "threat.eps is 4/255, but the data set colours has sentences and no image to change: choose thr",
        ),
        (
            "evaluate",
            [*TYPOS, "threat.edits=item"],
            "threat.edits=item: nothing would read it, because the sentences of",
        ),
        ("evaluate", [*TYPOS, "purifier=noise"], "purifier is chosen, but the data set colours has sentences"),
        ("evaluate", [*TYPOS, "threat.at=model"], "threat.at=model: nothing would read it"),
        (
            "evaluate",
            [*TYPOS[:3], "attack=words", "candidates=neighbours"],
            "WordSubstitution edits words, but the threat model counts characters",
        ),
        ("evaluate", [*TYPOS[:3], "attack=pgd"], "attack changes images, but the threat model"),
        ("evaluate", [*TYPOS, "model=digits"], "captions need a dual encoder"),
        ("evaluate", [*TYPOS, "templates=red"], "templates is 'red': choose"),
        ("evaluate", [*TYPOS, "class_names=[a,b,c,d,e]"], "the model reads the texts of the classes"),
        (
            "train-mat",
            [],
            "dataset colours has sentences with classes and no images: `robustcli evaluate` and `attack`",
        ),
        (
            "train-classifier",
            [],
            "dataset colours has sentences and no images: choose one such as dataset=scene_classes",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    command: str, more: list[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(command, [*words, *more, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "Traceback" not in error


def test_pictures_leave_no_texts_to_choose(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = f"dataset.class_images={write_pictures(tmp_path / 'pictures', 1)}"
    for key in ("templates=simple", "class_names=imagenet"):
        assert launch("evaluate", [*words, "attacks=none", pictures, key, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
        assert "because dataset.class_images gives the classes as pictures" in " ".join(capsys.readouterr().err.split())
