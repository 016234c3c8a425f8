"""Display of diagnostics: a verdict for each robust figure of a table, and the checks behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robustcli.diagnostics.finding import NOT_RUN, OK, SEARCHES, SUSPECT, Finding, by_number, verdict
from robustcli.report.tables import Grid, label_of

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {OK: "green", SUSPECT: "bold red", NOT_RUN: "yellow"}
_TITLE = "Diagnostics: are the numbers to be believed?"


def diagnostics_grid(findings: Sequence[Finding]) -> Grid:
    """One row for each model and attack: the verdict, the suspect checks with their remedies, the checks not run."""
    rows = [
        [model, label_of(attack), _word(of_pair), _measured(of_pair), _remedies(of_pair)]
        for (model, attack), of_pair in by_number(findings).items()
    ]
    return Grid(_TITLE, ["model", "attack", "verdict", "measured", "what to do"], rows, _note(findings))


def with_verdicts(grid: Grid, findings: Sequence[Finding]) -> Grid:
    """The table of `attack_grid` with the verdict on the last line of each number that was diagnosed."""
    words = {(model, label_of(attack)): _word(of_pair) for (model, attack), of_pair in by_number(findings).items()}
    rows = [
        [
            row[0],
            *(
                f"{cell}\n{words[row[0], name]}" if (row[0], name) in words else cell
                for name, cell in zip(grid.columns[1:], row[1:], strict=True)
            ),
        ]
        for row in grid.rows
    ]
    return replace(grid, rows=rows)


def print_findings(findings: Sequence[Finding], console: "Console | None" = None) -> None:
    """A line for each model and attack; below it, what is suspect and what to do about it."""
    from rich.console import Console
    from rich.text import Text

    shown = console or Console()
    if not shown.is_terminal:
        shown = Console(file=shown.file, width=max(shown.width, 120))
    shown.print(Text(_TITLE, "bold"))
    for (model, attack), of_pair in by_number(findings).items():
        word = (_word(of_pair), _STYLES[verdict(of_pair)])
        shown.print(Text.assemble(f"  {model}, {label_of(attack)}: ", word, _counted(of_pair)))
        for each in of_pair:
            if each.status == SUSPECT:
                shown.print(Text(f"    {each.check}: {each.measured}. {each.advice}"))


def _word(findings: Sequence[Finding]) -> str:
    """The verdict, and of how many checks it lacks the word: ``ok (2 left out)``, or ``ok so far (2 left out)`` where
    one of them attacks anew and may contradict it.
    """
    left_out, word = sum(each.left_out for each in findings), str(verdict(findings))
    if word == OK and any(each.missing and each.check in SEARCHES for each in findings):
        word = "ok so far"
    return word + (f" ({left_out} left out)" if left_out else "")


def _measured(findings: Sequence[Finding]) -> str:
    suspects = [f"{each.check}: {each.measured}" for each in findings if each.status == SUSPECT]
    return "\n".join([*suspects, _counted(findings).lstrip(", ")])


def _remedies(findings: Sequence[Finding]) -> str:
    return "\n".join(dict.fromkeys(each.advice for each in findings if each.advice))


def _counted(findings: Sequence[Finding]) -> str:
    """``, 6 of 9 checks ok, left out: black box (diagnostics.share=null runs it), not run: transfer``."""
    fine = sum(each.status == OK for each in findings)
    left_out = [each for each in findings if each.left_out]
    idle = [each.check for each in findings if each.status == NOT_RUN and not each.left_out]
    parts = [f", {fine} of {len(findings)} checks ok"]
    if left_out:
        remedy = left_out[0].advice.rstrip(".")
        parts.append(f"left out: {', '.join(each.check for each in left_out)} ({remedy})")
    return ", ".join([*parts, *([f"not run: {', '.join(idle)}"] if idle else [])])


def _note(findings: Sequence[Finding]) -> str:
    reasons = dict.fromkeys(f"{each.check}: {each.measured}" for each in findings if each.status == NOT_RUN)
    return f"Not run: {'; '.join(reasons)}." if reasons else ""
