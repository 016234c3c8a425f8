"""One table over runs: which runs are one row, what is marked, and the numbers of papers beside ours."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from robustcli.cli.launch import launch
from robustcli.cli.main import app
from robustcli.report.join import join
from robustcli.report.joined import Joined, best_of, frame_of, grid_of, markdown_of, tex_of
from robustcli.report.runs import find_runs
from robustcli.report.sweep import t_interval
from robustcli.report.tables import label_of
from robustcli.utils.errors import UserError
from robustcli.utils.files import write_json, write_yaml

Numbers = Mapping[tuple[str, float | None], float]


def evaluated(
    place: Path,
    numbers: Numbers,
    overrides: Sequence[str] = (),
    *,
    data: str = "d1",
    model: str = "model",
    suspect: Sequence[str] = (),
    eps: str = "4/255",
    finished: bool = True,
) -> Path:
    """A run of a classifier with accuracies by (attack, radius); those of ``suspect`` are not believed."""
    config: dict[str, Any] = {"threat": {"eps": eps, "norm": "linf"}, "evaluation": {"split": "test", "limit": None}}
    rows = [
        {
            "model": model,
            "defence": "none",
            "attack": attack,
            "access": "clean" if attack == "clean" else "adaptive",
            "eps": radius,
            "direction": "image_to_class",
            "queries": 100,
            "recall_at_1": value,
            "recall_at_1_low": value - 0.05,
            "recall_at_1_high": value + 0.03,
        }
        for (attack, radius), value in numbers.items()
    ]
    place.mkdir(parents=True)
    write_yaml(place / "config.yaml", config)
    write_yaml(place / "overrides.yaml", list(overrides))
    write_json(place / "manifest.json", {"data": {"test": {"fingerprint": data}}})
    pd.DataFrame(rows).to_csv(place / "metrics.csv", index=False)
    if suspect:
        found = [{"model": model, "attack": name, "check": "black box", "status": "suspect"} for name in suspect]
        pd.DataFrame(found).to_csv(place / "diagnostics.csv", index=False)
    if finished:
        (place / "DONE").touch()
    return place


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the command line, of two attacks."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        words = ["dataset=digits", "model=digits", "attacks=none", "attack=pgd", "+attack@attacks.fgsm=fgsm"]
        words += ["evaluation.limit=24", "evaluation.eps_curve=[]", "diagnostics=off", "threat.eps=16/255"]
        assert launch("evaluate", [*words, f"hydra.run.dir={folder / 'a'}"]) == 0
    return folder


def clean_and(value: float, *, clean: float = 0.9, attack: str = "pgd", eps: float = 4 / 255) -> Numbers:
    return {("clean", None): clean, (attack, eps): value}


def joined(tmp_path: Path, **settings: Any) -> Joined:
    return join(find_runs([tmp_path]), **settings)


def cells(table: Joined) -> list[list[str]]:
    return [list(row) for row in grid_of(table).rows]


def test_settings_that_differ_name_the_rows_and_all_else_does_not(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.5), ["dataset=digits", "model=a", "device=cpu"])
    evaluated(tmp_path / "1", clean_and(0.4), ["dataset=digits", "model=b", "diagnostics={extent: full}"])
    table = joined(tmp_path)
    assert list(grid_of(table).columns) == ["model", "no attack", "PGD"]
    assert cells(table) == [["a", "90.0\n±5.0", "50.0\n±5.0"], ["b", "90.0\n±5.0", "40.0\n±5.0"]]


def test_seeds_are_one_row_with_their_t_interval(tmp_path: Path) -> None:
    for seed, value in enumerate((0.2, 0.3, 0.4)):
        evaluated(tmp_path / str(seed), clean_and(value), [f"seed={seed}"])
    (row,) = joined(tmp_path).rows
    figure = row.figures["PGD", "image_to_class"]
    low, high = t_interval([0.2, 0.3, 0.4])
    assert (figure.value, figure.low, figure.high, figure.seeds) == pytest.approx((0.3, low, high, 3))
    assert "seed" not in row.settings


def test_a_seed_that_was_done_twice_is_no_second_sample(tmp_path: Path) -> None:
    for number in range(2):
        evaluated(tmp_path / str(number), clean_and(0.2 + number / 10), ["seed=0"])
    evaluated(tmp_path / "2", clean_and(0.4), ["seed=1"])
    assert len(joined(tmp_path).rows) == 3


def test_seeds_on_other_data_are_rows_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        evaluated(tmp_path / str(number), clean_and(0.2), [f"seed={number}"], data=f"d{number}")
    assert len(joined(tmp_path).rows) == 2


def test_attacks_and_radii_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.5, eps=2 / 255), ["attack=pgd", "threat.eps=2/255"], eps="2/255")
    evaluated(tmp_path / "1", clean_and(0.3), ["attack=pgd", "threat.eps=4/255"])
    evaluated(tmp_path / "2", clean_and(0.2, attack="square"), ["attack=square", "threat.eps=4/255"])
    table = joined(tmp_path)
    assert list(table.columns) == ["no attack", "PGD, 2/255", "PGD, 4/255", "Square, 4/255"]
    assert [row[-4:] for row in cells(table)] == [["90.0\n±5.0", "50.0\n±5.0", "30.0\n±5.0", "20.0\n±5.0"]]


def test_runs_with_other_numbers_for_one_column_stay_apart(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.5), ["attack=pgd"])
    evaluated(tmp_path / "1", clean_and(0.5, clean=0.8, attack="square"), ["attack=square"])
    assert len(joined(tmp_path).rows) == 2, "another model answered, since the clean figures differ"


def test_radii_of_a_curve_are_no_columns(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", {**clean_and(0.5), ("pgd", 8 / 255): 0.1})
    assert list(joined(tmp_path).columns) == ["no attack", "PGD"]


def test_a_mean_over_data_sets_counts_each_the_same(tmp_path: Path) -> None:
    for name, value in (("a", 0.2), ("b", 0.6)):
        evaluated(tmp_path / name, clean_and(value), [f"dataset={name}"], data=name)
    last = joined(tmp_path).rows[-1]
    assert last.settings["dataset"] == "mean over 2 data sets"
    assert last.figures["PGD", "image_to_class"].value == pytest.approx(0.4)


def test_no_mean_without_a_set_that_failed(tmp_path: Path) -> None:
    for name in "ab":
        evaluated(tmp_path / name, clean_and(0.2), [f"dataset={name}"], data=name)
    evaluated(tmp_path / "c", clean_and(0.2), ["dataset=c"], data="c", finished=False)
    table = joined(tmp_path)
    assert len(table.rows) == 2
    assert any("Not in the table: 1 run" in note and "still runs or was stopped" in note for note in table.notes)


def test_no_mean_where_a_model_lacks_a_set(tmp_path: Path) -> None:
    for model, name in (("x", "a"), ("x", "b"), ("y", "a")):
        evaluated(tmp_path / f"{model}{name}", clean_and(0.2), [f"dataset={name}", f"checkpoint={model}"], data=name)
    assert not any("mean" in row.settings["dataset"] for row in joined(tmp_path).rows)


def test_what_is_suspect_is_marked_and_never_the_best(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.7), ["seed=0", "checkpoint=a"], suspect=["pgd"])
    evaluated(tmp_path / "1", clean_and(0.6, clean=0.8), ["seed=0", "checkpoint=b"])
    evaluated(tmp_path / "2", clean_and(0.5), ["seed=0", "checkpoint=c"])
    table = joined(tmp_path)
    assert best_of(table) == {(0, "no attack"), (2, "no attack"), (1, "PGD")}
    assert [row[-1].endswith("†") for row in cells(table)] == [True, False, False]
    assert "†" in tex_of(table).replace(r"$^\dagger$", "†") and r"\textbf{60.0 $\pm$5.0}" in tex_of(table)
    assert "**60.0 ±5.0**" in markdown_of(table) and "**70.0" not in markdown_of(table)


def test_one_suspect_seed_makes_the_mean_suspect(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.7), ["seed=0"], suspect=["pgd"])
    evaluated(tmp_path / "1", clean_and(0.6), ["seed=1"])
    (row,) = joined(tmp_path).rows
    assert row.suspect == {"PGD"}


def test_rows_on_other_images_do_not_compete(tmp_path: Path) -> None:
    evaluated(tmp_path / "0", clean_and(0.7), ["dataset=a"], data="a")
    evaluated(tmp_path / "1", clean_and(0.6), ["dataset=b"], data="b")
    assert not best_of(joined(tmp_path))


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    for name in "ab":
        evaluated(tmp_path / "runs" / name, clean_and(0.2), [f"dataset={name}"], data=name)
    paper = tmp_path / "paper.csv"
    paper.write_text(
        "dataset,attack,eps,published,source\na,PGD,4/255,21.5,Table 2\nb,clean,,88,\nb,pgd,2/255,40,\nc,pgd,,1,\n"
    )
    table = join(find_runs([tmp_path / "runs"]), published=paper)
    grid = grid_of(table)
    assert list(grid.columns) == ["dataset", "no attack", "no attack, published", "PGD", "PGD, published"]
    assert [list(row)[2::2] for row in grid.rows[:2]] == [["-", "21.5"], ["88.0", "-"]]
    assert sum("No run here is that of a published number" in note for note in table.notes) == 2
    assert frame_of(table)["published"].dropna().tolist() == [0.215, 0.88]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attack\npgd\n", "has no column published"),
        ("attack,published\npgd,101\n", "no percentage"),
        ("attack,published\npgd,much\n", "expected a number"),
        ("attack,published\npgd,1\nPGD,2\n", "two published numbers"),
    ],
)
def test_published_numbers_that_cannot_be_read_are_told(tmp_path: Path, text: str, said: str) -> None:
    evaluated(tmp_path / "run", clean_and(0.2))
    (tmp_path / "paper.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        join(find_runs([tmp_path / "run"]), published=tmp_path / "paper.csv")


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    odd = "a|b_c*d&e%$#{}^~\\"
    evaluated(tmp_path / "0", clean_and(0.2), [f"checkpoint={odd}"])
    evaluated(tmp_path / "1", clean_and(0.2), ["checkpoint=x"])
    table = joined(tmp_path)
    html = MarkdownIt("commonmark").enable("table").render(markdown_of(table))
    assert '<td style="text-align:left">a|b_c*d&amp;e%$#{}^~\\</td>' in html
    assert r"a|b\_c*d\&e\%\$\#\{\}\textasciicircum{}\textasciitilde{}\textbackslash{}" in tex_of(table)


def test_long_settings_are_shortened_but_never_alike(tmp_path: Path) -> None:
    for number, path in enumerate(("/one/very/long/folder/of/weights/a.pt", "/two/very/long/folder/of/weights/a.pt")):
        evaluated(tmp_path / str(number), clean_and(0.2), [f"checkpoint={path}"])
    evaluated(tmp_path / "2", clean_and(0.2), ["checkpoint=/three/very/long/folder/of/weights/b.pt"])
    assert [row[0] for row in cells(joined(tmp_path))] == [
        "/one/very/long/folder/of/weights/a.pt",
        "/two/very/long/folder/of/weights/a.pt",
        "b.pt",
    ]


def test_from_the_command_line(real: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(real), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.md", "table.tex", "table.html", "table.csv"}
    metrics = pd.read_csv(real / "a" / "metrics.csv").set_index("attack")["recall_at_1"]
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("attack")["recall_at_1"]
    assert table.to_dict() == {label_of(name): value for name, value in metrics.items()}


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = evaluated(tmp_path / "run", clean_and(0.2))
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(place, tmp_path / "broken")
    (broken / "manifest.json").write_text("{")
    open_run = evaluated(tmp_path / "open", clean_and(0.2), finished=False)
    for words, said in (
        (["report", str(tmp_path / "none")], "is no directory"),
        (["report", str(tmp_path / "empty")], "there is no run in"),
        (["report", str(broken)], "cannot be read"),
        (["report", str(open_run)], "1 run not finished"),
        (["report", str(place), "--measure", "recal"], "choose one of"),
        (["report", str(place), "--measure", "r_precision"], "no finished run there has a table"),
        (["report", str(place), "--published", str(tmp_path / "no.csv")], "cannot be read as a CSV"),
        (["report", str(place), "--out", str(place / "DONE" / "x")], "cannot be written"),
    ):
        done = CliRunner().invoke(app, words)
        assert (done.exit_code, done.output.count("Traceback")) == (2, 0), words
        assert said in " ".join(done.output.split()), done.output


def test_a_number_without_interval_has_none(tmp_path: Path) -> None:
    for name, value in (("a", 0.2), ("b", 0.6)):
        evaluated(tmp_path / name, clean_and(value), [f"dataset={name}"], data=name)
    assert math.isnan(joined(tmp_path).rows[-1].figures["PGD", "image_to_class"].low)
    assert cells(joined(tmp_path))[-1][-1] == "40.0"


def test_the_table_is_opened_in_a_browser(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(seen.append(address)) or True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runs = sorted(path.parent for path in real.rglob("DONE"))
    assert CliRunner().invoke(app, ["report", str(runs[0]), "--open"]).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(real), "--open"]).exit_code == 0
    assert seen[0] == (runs[0] / "report.html").as_uri() and "PGD" in Path(seen[1].removeprefix("file://")).read_text()
