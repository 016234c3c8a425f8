"""What stands beside a table of judged models: whether its numbers are to be believed, and what transfers.

A model goes by its label; an attack by its name among the judges.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustcli.attacks import AutoAttack, RetrievalAttack, RetrievalAutoAttack
from robustcli.attacks.adaptive.transfer import retrieval_transfer_matrix, transfer_matrix
from robustcli.diagnostics import SAMPLES, Finding, diagnose
from robustcli.evaluation import ClassificationJudge, RetrievalJudge, summarise, worst_attack
from robustcli.evaluation.bench import CURVE, Bench
from robustcli.report.tables import Grid
from robustcli.runs.run import Run
from robustcli.utils import files
from robustcli.utils.progress import Progress

_ENSEMBLES = (AutoAttack, RetrievalAutoAttack)
_FEW = 16  # images of an ensemble's diagnostics, which would else cost more than the table


def examine(run: Run, bench: Bench, models: Mapping[str, Any], records: pd.DataFrame, extent: str) -> list[Finding]:
    """The diagnostics of the numbers of each model, also in ``diagnostics.csv``.

    Args:
        extent: ``off``; ``auto`` and ``strict``, of the attack that hurts a model most, on which the claim rests;
            ``full``, of every attack.
    """
    if extent == "off" or not bench.attacks:
        return []
    table = summarise(records, resamples=1, seed=0)
    plan = [
        (label, name)
        for label in models
        for name in (bench.attacks if extent == "full" else [worst_attack(_judged(table), label)])
        if name is not None
    ]
    findings: list[Finding] = []
    with Progress(len(plan), "diagnostics", unit="numbers") as progress:
        for label, name in plan:
            attack = bench.attacks[name]
            subject = bench.judge.subject(models[label], _FEW if isinstance(attack, _ENSEMBLES) else SAMPLES)
            found = diagnose(subject, attack, model=label, name=name, sources=models)
            findings += found
            progress.advance(1)
    with files.atomic(run.directory / "diagnostics.csv") as path:
        pd.DataFrame([vars(finding) for finding in findings]).to_csv(path, index=False)
    return findings


def transfers(run: Run, bench: Bench, models: Mapping[str, Any]) -> list[Grid]:
    """How often what misleads one model misleads another, under the judge that draws the curve; also in
    ``transfer.csv``.

    Chunk by chunk: a dual encoder's queries are ranked among those of their chunk.
    """
    attack, parts = bench.attacks[bench.curve_name], []
    with Progress(len(bench.judge), f"transfer: {bench.curve_name}", unit="images") as progress:
        for rows in bench.judge.chunks():
            parts.append(_chunk(bench, attack, models, rows))
            progress.advance(len(rows))
    keys = ["direction", "source", "target"]
    table = pd.concat(parts).groupby(keys, sort=False)[["samples", "successes"]].sum().reset_index()
    table["success_rate"] = table["successes"] / table["samples"].where(table["samples"] > 0)
    with files.atomic(run.directory / "transfer.csv") as path:
        table.to_csv(path, index=False)
    return [_grid(str(direction), part, bench.curve_name) for direction, part in table.groupby("direction", sort=False)]


def _chunk(bench: Bench, attack: Any, models: Mapping[str, Any], rows: Any) -> pd.DataFrame:
    judge, first = bench.judge, next(iter(models.values()))
    if isinstance(judge, RetrievalJudge):
        assert isinstance(attack, RetrievalAttack)
        return retrieval_transfer_matrix(attack, models, judge.pairs(first, rows)[0])
    assert isinstance(judge, ClassificationJudge)
    images, labels = judge.batch(first, rows)
    return transfer_matrix(attack, models, images, labels, rows).assign(direction=judge.directions[0])


def _grid(direction: str, table: pd.DataFrame, attack: str) -> Grid:
    names = list(dict.fromkeys(table["source"]))
    cells = {
        (row["source"], row["target"]): f"{100 * row['success_rate']:.1f}\nof {row['samples']}"
        if row["samples"]
        else "-"
        for row in table.to_dict("records")
    }
    rows = [[source, *(cells[source, target] for target in names)] for source in names]
    title = f"Transfer of {attack} in percent, {direction.replace('_', ' ')}: computed on (row), judged on (column)"
    return Grid(title, ["", *names], rows, "Of the queries that both models answer rightly without attack.")


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["attack"].str.startswith(CURVE)]
