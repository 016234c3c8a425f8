"""The table of models under attacks."""

import io
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from robustcli.report.tables import attack_grid, member_grid, precision_grid, print_grid

DIRECTIONS = ("image_to_text", "text_to_image")


def frame(
    models: tuple[str, ...] = ("before (clean)", "after mat"), attacks: tuple[str, ...] = ("sga", "clean")
) -> Any:
    values = iter((0.018, 0.08, 0.776, 0.746, 0.466, 0.47, 0.806, 0.676))
    rows = [
        {"model": model, "attack": attack, "direction": direction, "recall_at_1": next(values, 0.5)}
        for model in models
        for attack in attacks
        for direction in DIRECTIONS
    ]
    table = pd.DataFrame(rows)
    return table.assign(recall_at_1_low=table["recall_at_1"] - 0.01, recall_at_1_high=table["recall_at_1"] + 0.02)


def printed(grid: Any, width: int = 100) -> str:
    out = io.StringIO()
    print_grid(grid, Console(file=out, width=width))
    return out.getvalue()


def test_no_cell_is_folded_where_the_table_goes_to_a_file() -> None:
    grid = attack_grid(frame(attacks=("clean", "pgd", "words", "sep", "coattack", "sga")))
    text = printed(grid)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 102
    for row in grid.rows:
        for cell in row[1:]:
            assert all(part in text for part in cell.split("\n")), "a number was folded or cut"
    assert text.count("before") == 1 and "Co-Attack" in text


def test_one_direction_or_no_interval_is_shown_as_missing() -> None:
    table = frame().drop(columns=["recall_at_1_low", "recall_at_1_high"])
    grid = attack_grid(table[(table["direction"] == "text_to_image") | (table["attack"] == "clean")])
    assert grid.rows[0] == ["before (clean)", "77.6 / 74.6", "- / 8.0"]
    assert grid.note == ""


def test_model_without_an_attack_has_an_empty_cell() -> None:
    table = frame()
    grid = attack_grid(table[~((table["model"] == "after mat") & (table["attack"] == "sga"))])
    assert grid.rows[1][2] == "-"


def test_success_rate_names_its_denominator_for_each_model() -> None:
    table = frame().drop(columns=["recall_at_1_low", "recall_at_1_high"])
    table["success_flip"] = [0.976, 0.89, None, None, 0.42, 0.3, None, None]
    table["success_flip_denominator"] = [388, 2238, None, None, 403, 2028, None, None]
    grid = attack_grid(table, "success_flip")
    assert grid.columns == ["model", "SGA"], "no attack has no success rate"
    assert grid.rows[0][1] == "97.6 / 89.0"
    assert "before (clean) 388 / 2238; after mat 403 / 2028" in grid.note
    assert "rightly without attack" in grid.note


def test_members_of_an_ensemble_are_counted_in_both_directions() -> None:
    rows = [("a", "sga", "image_to_text", 3), ("b", "sga", "text_to_image", 2), ("a", "text", "text_to_image", 7)]
    frame = pd.DataFrame(
        [
            {"model": m, "attack": "retrieval_autoattack", "member": by, "direction": d, "fallen": n}
            for m, by, d, n in rows
        ]
    )
    grid = member_grid(frame)
    assert grid.columns == ["attack", "member", "a", "b"] and grid.title.endswith("image to text / text to image")
    name = "retrieval AutoAttack"
    assert grid.rows == [[name, "sga", "3 / 0", "0 / 2"], [name, "text", "0 / 7", "0 / 0"]]


def test_percent_given_for_shares_is_an_error() -> None:
    with pytest.raises(ValueError, match="share between 0 and 1"):
        attack_grid(frame().assign(recall_at_1=77.6))
    table = frame().assign(success_drop=-0.01)
    assert attack_grid(table, "success_drop").rows[0][1] == "-1.0 / -1.0"


def test_cell_that_stands_twice_is_an_error() -> None:
    table = frame()
    with pytest.raises(ValueError, match=r"before .clean., sga, image_to_text twice"):
        attack_grid(pd.concat([table, table.head(1)]))


def test_square_brackets_are_no_markup() -> None:
    assert "[red]x" in printed(attack_grid(frame(models=("[red]x",))))


def test_a_grid_wider_than_the_terminal_is_turned() -> None:
    from io import StringIO

    from rich.console import Console

    from robustcli.report.tables import Grid, print_grid

    grid = Grid("title", ["model", "first attack", "second attack"], [["a", "11.1 / 22.2", "33.3 / 44.4"]])
    for width, folded in ((80, False), (36, True)):
        out = StringIO()
        print_grid(grid, Console(file=out, force_terminal=True, width=width, color_system=None))
        assert ("second attack" in out.getvalue().splitlines()[2]) is not folded
        assert "11.1 / 22.2" in out.getvalue() and "33.3 / 44.4" in out.getvalue()


def test_a_file_gets_the_whole_width() -> None:
    from io import StringIO

    from rich.console import Console

    from robustcli.report.tables import Grid, print_grid

    out = StringIO()
    print_grid(Grid("t", ["model", *["wide attack"] * 9], [["a", *["11.1 / 22.2"] * 9]]), Console(file=out, width=80))
    assert out.getvalue().count("wide attack") == 9, "no cell is folded"


def test_what_a_user_names_is_plain_text_in_the_terminal() -> None:
    name = "[/red] :smile: [link=x]a\\"
    text = printed(attack_grid(frame(models=(name, "other"))))
    assert name in text


def test_precisions_stand_in_two_rows_a_model() -> None:
    table = frame(models=("a", "b")).assign(map_at_r=0.25, r_precision=0.5, map_at_r_low=0.2, map_at_r_high=0.35)
    grid = precision_grid(table)
    assert [row[0] for row in grid.rows] == ["a, mAP@R", "a, R-precision", "b, mAP@R", "b, R-precision"]
    assert grid.rows[0][1] == "25.0 / 25.0\n±10.0 / ±10.0" and grid.rows[1][1] == "50.0 / 50.0"
    assert list(grid.columns) == list(attack_grid(table).columns)
