"""Verdicts under numbers, in tables and in the terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from robustcli.diagnostics import Finding
from robustcli.diagnostics.finding import Status
from robustcli.report.diagnostics import (
    diagnostics_grid,
    print_findings,
    with_verdicts,
)
from robustcli.report.tables import Grid


def finding(check: str, status: Status, attack: str = "pgd", model: str = "before") -> Finding:
    return Finding(
        check=check,
        status=status,
        measured=f"measured {check}",
        advice=f"mend {check}" if status == "suspect" else "",
        model=model,
        attack=attack,
    )


FINDINGS = [
    finding("gradients", "ok"),
    finding("black box", "suspect"),
    finding("transfer", "not run"),
    finding("unbounded eps", "ok", model="after"),
    finding("words", "not run", "sga", "after"),
]


def test_a_row_for_each_number_says_what_to_do() -> None:
    grid = diagnostics_grid(FINDINGS)
    assert [row[:3] for row in grid.rows] == [
        ["before", "PGD", "suspect"],
        ["after", "PGD", "ok"],
        ["after", "SGA", "not run"],
    ]
    assert "black box: measured black box" in grid.rows[0][3]
    assert "not run: transfer" in grid.rows[0][3]
    assert grid.rows[0][4] == "mend black box"
    assert grid.rows[1][4] == ""
    assert "transfer: measured transfer" in grid.note


def test_the_verdict_stands_under_its_number_alone() -> None:
    table = Grid("t", ["model", "no attack", "PGD", "SGA"], [["before", "90", "10", "5"], ["after", "80", "60", "-"]])
    assert with_verdicts(table, FINDINGS).rows == [
        ["before", "90", "10\nsuspect", "5"],
        ["after", "80", "60\nok", "-\nnot run"],
    ]


@pytest.mark.parametrize(
    ("check", "change", "word"),
    [
        ("monotone in eps", {"left_out": True}, "ok (1 left out)"),
        ("black box", {"left_out": True}, "ok so far (1 left out)"),
        ("transfer", {"failed": True}, "ok so far"),
        ("transfer", {}, "ok"),
    ],
)
def test_a_number_that_a_missing_search_may_contradict_is_ok_so_far(
    check: str, change: dict[str, bool], word: str
) -> None:
    missing = replace(finding(check, "not run"), **change)  # type: ignore[arg-type]
    findings = [finding("unbounded eps", "ok"), missing]
    assert diagnostics_grid(findings).rows[0][2] == word
    suspect = diagnostics_grid([*findings, finding("last step", "suspect")]).rows[0][2]
    assert suspect.startswith("suspect")


def test_the_terminal_names_what_is_suspect_and_only_that() -> None:
    out = io.StringIO()
    print_findings(FINDINGS, Console(file=out, width=100))
    text = out.getvalue()
    assert "before, PGD: suspect, 1 of 3 checks ok, not run: transfer" in text
    assert "black box: measured black box. mend black box" in text
    assert "measured gradients" not in text
