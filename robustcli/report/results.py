"""What a judged model leaves in the run directory: records, metrics, pictures and the report.

A model goes by its label, for example ``before`` and ``after``; an attack by its name among the judges.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from robustcli.attacks import ClassifierAttack
from robustcli.diagnostics import refuse_suspects
from robustcli.evaluation import summarise, with_worst, worst_attack
from robustcli.evaluation.bench import CURVE, Bench
from robustcli.report.diagnose import examine, transfers
from robustcli.report.diagnostics import diagnostics_grid, print_findings, with_verdicts
from robustcli.report.figures import examples, recall_over_eps
from robustcli.report.markdown import Report, render
from robustcli.report.tables import attack_grid, cost_grid, print_grid
from robustcli.runs.run import Run

_EXAMPLES = 4


def write_results(
    run: Run,
    bench: Bench,
    models: Mapping[str, Any],
    records: pd.DataFrame,
    *,
    title: str,
    metrics: Mapping[str, float] | None = None,
    shown: Mapping[str, str] | None = None,
    diagnostics: str = "off",
    transfer: bool = False,
) -> pd.DataFrame:
    """Write records, metrics, pictures and the report of judged models, print the table, and return the summary.

    Args:
        models: by label, in the order of the table.
        metrics: figures of the command's own, which join those of the table.
        shown: what a label is called in tables and pictures, where that is more than the label.
        diagnostics: see `examine`.
        transfer: also tell what transfers from model to model.

    Raises:
        SuspectClaim: a number is suspect, under ``diagnostics="strict"``; all is written by then.
    """
    whole = summarise(with_worst(records), resamples=bench.resamples, seed=bench.seed)
    table, curve = _without_curve(whole)
    run.write_records(records)
    chance = {f"chance/{direction}/recall_at_1": value for direction, value in bench.judge.chance().items()}
    run.write_metrics({**(metrics or {}), **_flat(table), **_flat(curve), **chance}, whole)
    names = {label: (shown or {}).get(label, label) for label in models}
    table_shown, curve_shown = (frame.assign(model=frame["model"].map(names)) for frame in (table, curve))
    findings = [replace(found, model=names[found.model]) for found in examine(run, bench, models, records, diagnostics)]
    grid = with_verdicts(attack_grid(table_shown), findings)
    costs = cost_grid(table_shown)
    transferred = transfers(run, bench, models) if transfer and bench.attacks else []
    figures = [*_draw_curve(run, bench, curve_shown), *_draw_examples(run, bench, models, table, records)]
    grids = [
        grid,
        *([diagnostics_grid(findings)] if findings else []),
        *transferred,
        *([costs] if costs.rows else []),
        *(attack_grid(table_shown, measure) for measure in ("success_flip", "success_drop") if measure in table),
    ]
    report = Report(title=title, threat=bench.budget, tables=grids, figures=figures, caveats=_caveats(bench, records))
    run.write_report(render(report, run.manifest, run.directory))
    for printed in (grid, *([costs] if bench.minimum_norm else []), *transferred):
        print_grid(printed)
    if findings:
        print_findings(findings)
    if diagnostics == "strict":
        refuse_suspects(findings)
    return table


def _without_curve(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    on_curve = table["attack"].str.startswith(CURVE)
    curve = table[on_curve]
    return table[~on_curve], curve.assign(eps=curve["attack"].str.removeprefix(CURVE).astype(float))


def _flat(table: pd.DataFrame) -> dict[str, float]:
    """``<model>/<attack>/<direction>/<figure>`` for every figure that is defined."""
    keys = ["model", "attack", "direction"]
    return {
        "/".join([*(str(row[key]) for key in keys), str(name)]): value
        for row in table.to_dict("records")
        for name, value in row.items()
        if name not in [*keys, "eps"] and not pd.isna(value)
    }


def _draw_curve(run: Run, bench: Bench, curve: pd.DataFrame) -> list[tuple[str, Any]]:
    if curve.empty:
        return []
    path = run.figure("recall_over_eps")
    attack = bench.attacks[bench.curve_name]
    moved = attack if isinstance(attack, ClassifierAttack) else attack.image
    recall_over_eps(curve, path, budget=bench.curve_name, norm="linf" if moved is None else moved.norm)
    captions = ", which edits captions at eps 0 too" if "text_to_image" in bench.judge.directions else ""
    return [(f"What is left over the eps of the image attack ({bench.curve_name}{captions}).", path)]


def _draw_examples(
    run: Run, bench: Bench, models: Mapping[str, Any], table: pd.DataFrame, records: pd.DataFrame
) -> list[tuple[str, Any]]:
    """Each model under its own worst attack, on the same images; per-sample draws make them those of the records."""
    drawn = []
    for label, model in models.items():
        name = worst_attack(table, label)
        if name is None:
            continue
        path = run.figure(f"examples_{label.replace(' ', '_')}")
        found = records[(records["model"] == label) & (records["attack"] == name)]
        rows = bench.judge.examples(model, bench.attacks[name], found, _EXAMPLES)
        examples(rows, path, title=f"{label}, under {name}")
        drawn.append((f"{label}: what {name} makes of some images, its worst attack in the table.", path))
    return drawn


def _caveats(bench: Bench, records: pd.DataFrame) -> list[str]:
    notes = [
        *bench.judge.describe(),
        "*worst*: each query under the attack that hurts it most.",
        "A robust figure is an upper bound: a stronger attack can only lower it.",
    ]
    broken = records[["zero_gradients", "nan_gradients"]].fillna(0).sum() if "zero_gradients" in records else None
    if broken is not None and broken.sum() > 0:
        notes.append(
            f"SUSPECT: {int(broken['zero_gradients'])} gradients were all zero and {int(broken['nan_gradients'])} held "
            "a NaN: the gradient attacks were blind there, and their figures flatter."
        )
    return notes
