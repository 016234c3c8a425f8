"""Results of an evaluation in the run directory: records, metrics, tables, pictures and the report.

A model goes by its label, for example ``before`` and ``after``; an attack by its name in the suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from robustcli.diagnostics import Finding, refuse_suspects
from robustcli.evaluation import CLEAN, Entry, Evaluation, Group
from robustcli.evaluation.aggregate import at_radius, paper_table, robust_recall, summarise, up_to_radius, with_worst
from robustcli.evaluation.records import WORST
from robustcli.report.defences import NO_ADAPTIVE, access_grid, masked, paper_grid, strict_grid
from robustcli.report.diagnose import coverages, diagnostics_of, transfers
from robustcli.report.diagnostics import diagnostics_grid, print_findings, with_verdicts
from robustcli.report.markdown import Report, render
from robustcli.report.pictures import draw_defences, draw_models
from robustcli.report.tables import Grid, attack_grid, cost_grid, print_grid
from robustcli.report.threat import threat_model
from robustcli.runs.run import Run

_KEYS = ("model", "defence", "attack", "access", "eps", "direction")


def write_results(
    run: Run,
    evaluation: Evaluation,
    groups: Sequence[Group],
    records: pd.DataFrame,
    *,
    title: str,
    metrics: Mapping[str, float] | None = None,
    shown: Mapping[str, str] | None = None,
    diagnostics: str = "off",
    transfer: bool = False,
) -> pd.DataFrame:
    """Write records, metrics, pictures and the report of judged models, print the tables, and return the summary at
    the radius of the table.

    Args:
        groups: the models, in the order of the table.
        metrics: figures of the command's own, which join those of the table.
        shown: what a label is called in tables and pictures, where that is more than the label.
        diagnostics: see `diagnostics_of`.
        transfer: also tell what transfers from model to model.

    Raises:
        SuspectClaim: a number is suspect, under ``diagnostics="strict"``; all is written by then.
    """
    defended = any(group.defended for group in groups)
    table, curve = _defended(evaluation, records) if defended else _alone(evaluation, records)
    run.write_records(records)
    chance = {f"chance/{name}/recall_at_1": value for name, value in evaluation.evaluator.chance().items()}
    flat = {**(metrics or {}), **_flat(table, defended), **_flat(curve, defended, curve=True), **chance}
    run.write_metrics(flat, pd.concat([table, curve], ignore_index=True))
    names = {entry.label: (shown or {}).get(entry.label, entry.label) for group in groups for entry in group.entries}
    findings = [
        replace(found, model=names[found.model])
        for found in diagnostics_of(run, evaluation, groups, table, diagnostics)
    ]
    seen, seen_curve = (frame.assign(model=frame["model"].map(names)) for frame in (table, curve))
    warnings = _warnings(evaluation, seen, seen_curve, records) if defended else []
    transferred = transfers(run, evaluation, groups, _drawn(evaluation)) if transfer and evaluation.attacks else []
    if defended:
        grids, printed = _defence_grids(evaluation, records, seen, seen_curve), 1
        pictures = draw_defences(run, evaluation, groups, pd.concat([seen, seen_curve], ignore_index=True))
    else:
        grids, printed = _model_grids(evaluation, seen, findings), 1 + _smallest_alone(evaluation)
        pictures = draw_models(run, evaluation, groups, table, seen_curve, records, _drawn(evaluation))
    grids[0] = _with_notes(grids[0], coverages(evaluation))
    report = Report(
        title=title,
        summary="\n\n".join(f"**{sentence}**" for sentence in warnings),
        threat=_threat(evaluation, defended=defended),
        tables=[*grids, *([diagnostics_grid(findings)] if findings else []), *transferred],
        figures=[(picture.caption, picture.path) for picture in pictures],
        caveats=_caveats(evaluation, groups, records),
    )
    run.write_report(render(report, run.manifest, run.directory))
    _print([*grids[:printed], *transferred], warnings, findings)
    if diagnostics == "strict":
        refuse_suspects(findings)
    return table


def _with_notes(grid: Grid, notes: Sequence[str]) -> Grid:
    return replace(grid, note=" ".join([*([grid.note] if grid.note else []), *notes]))


def _alone(evaluation: Evaluation, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summaries of models without a test-time defence: at the radius of the table, and along the curve."""
    settings = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    table = summarise(with_worst(at_radius(records, evaluation.threat.radius)), **settings)
    name = _drawn(evaluation)
    own = records[records["attack"].isin([CLEAN, name])]
    radii = evaluation.radii
    if not radii and evaluation.threat.radius is None and evaluation.attacks:
        radii = evaluation.norms(own)
    found = [at_radius(own, eps) for eps in radii]
    points = [part[part["attack"] != CLEAN].assign(eps=eps) for part, eps in zip(found, radii, strict=True)]
    return table, summarise(pd.concat(points), **settings) if points else table[:0]


def _defended(evaluation: Evaluation, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summaries of models behind test-time defences: at the radius of the table, and at the others."""
    settings = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    main, *others = [evaluation.threat.ball.eps, *(eps for eps in evaluation.radii if eps != evaluation.threat.radius)]
    clean = records[records["access"] == CLEAN]
    table = summarise(pd.concat([clean, up_to_radius(records, main)], ignore_index=True), **settings)
    wider = [up_to_radius(records, eps) for eps in others]
    return table, summarise(pd.concat(wider), **settings) if wider else table[:0]


def _flat(table: pd.DataFrame, defended: bool, *, curve: bool = False) -> dict[str, float]:
    """``<model>/<attack>/<direction>/<figure>`` for every figure that is defined; of a curve ``<attack>@<eps>``; of
    defences ``<model>/<access>/<attack>@<eps>/<direction>/<figure>``.
    """
    flat = {}
    for row in table.to_dict("records"):
        name = str(row["attack"])
        if (defended and row["access"] != CLEAN) or curve:
            name += "@" + f"{row['eps']:.6f}".rstrip("0").rstrip(".")
        parts = [str(row["model"]), *([str(row["access"])] if defended else []), name, str(row["direction"])]
        for figure, value in row.items():
            if figure not in _KEYS and not pd.isna(value):
                flat["/".join([*parts, str(figure)])] = value
    return flat


def _model_grids(evaluation: Evaluation, table: pd.DataFrame, findings: Sequence[Finding]) -> list[Grid]:
    costs, measures = cost_grid(table), [name for name in ("success_flip", "success_drop") if name in table]
    grids = [with_verdicts(attack_grid(table), findings), *([costs] if costs.rows else [])]
    return [*grids, *(attack_grid(table, measure) for measure in measures)]


def _defence_grids(
    evaluation: Evaluation, records: pd.DataFrame, table: pd.DataFrame, curve: pd.DataFrame
) -> list[Grid]:
    norm, radii = evaluation.threat.norm, _radii(evaluation)
    whole = pd.concat([table, curve], ignore_index=True)
    grids = [access_grid(table, evaluation.threat.ball.eps, norm=norm), strict_grid(whole, radii, norm=norm)]
    claimed = paper_table(records, radii, resamples=evaluation.resamples, seed=evaluation.seed)
    return [*grids, *([paper_grid(claimed, radii, norm=norm)] if len(claimed) else [])]


def _warnings(evaluation: Evaluation, table: pd.DataFrame, curve: pd.DataFrame, records: pd.DataFrame) -> list[str]:
    whole = pd.concat([table, curve], ignore_index=True)
    known = set(records["access"])
    missing = [] if known & {"adaptive", "transfer"} else [NO_ADAPTIVE]
    return [*missing, *masked(whole, _radii(evaluation), norm=evaluation.threat.norm)]


def _radii(evaluation: Evaluation) -> list[float]:
    return sorted({evaluation.threat.ball.eps, *evaluation.radii})


def _drawn(evaluation: Evaluation) -> str:
    """The attack that draws the curve, and whose transfer is told."""
    return evaluation.curve or next(reversed(list(evaluation.attacks)), "")


def _smallest_alone(evaluation: Evaluation) -> bool:
    """Whether how far the attacks went is the point of the run."""
    return evaluation.threat.radius is None and bool(evaluation.attacks)


def _threat(evaluation: Evaluation, *, defended: bool) -> list[str]:
    captions, attacker = "text_to_image" in evaluation.evaluator.directions, evaluation.attacker
    access = ("transfer",) if attacker.surrogate is not None else ("adaptive",)
    if not defended:
        return threat_model(evaluation.threat, captions=captions, access=access)
    known = access if attacker.surrogate is not None else tuple(dict.fromkeys(("static", *attacker.access)))
    fresh = f"Every query is judged on {evaluation.evaluator.fresh} fresh answers of a defence that draws."
    return [*threat_model(evaluation.threat, captions=captions, access=known), fresh]


def _caveats(evaluation: Evaluation, groups: Sequence[Group], records: pd.DataFrame) -> list[str]:
    notes = [
        *evaluation.evaluator.describe(),
        "*worst*: each query under the attack that hurts it most.",
        "A robust figure is an upper bound: a stronger attack can only lower it.",
    ]
    defended = [entry for group in groups for entry in group.defended]
    if defended and any(evaluation.is_minimum_norm(name) for name in evaluation.attacks):
        notes.append(
            "Attacks that look for the smallest change stand with what they found; the worst also counts those "
            "followed on in their direction to the radius."
        )
    notes += [
        f"{entry.label}: an answer is the mean of {entry.model.draws} draws." for entry in defended if entry.randomised
    ]
    own = records[(records["access"] != "static") | (records["defence"] == "none")]  # of static, each model has a copy
    broken = own[["zero_gradients", "nan_gradients"]].fillna(0).sum() if "zero_gradients" in own else None
    if broken is not None and broken.sum() > 0:
        notes.append(
            f"SUSPECT: {int(broken['zero_gradients'])} gradients were all zero and {int(broken['nan_gradients'])} held "
            "a NaN: the gradient attacks were blind there, and their figures flatter."
        )
    return notes


def _print(grids: Sequence[Grid], warnings: Sequence[str], findings: Sequence[Finding]) -> None:
    from rich.console import Console

    for grid in grids:
        print_grid(grid)
    for sentence in warnings:
        Console().print(sentence, style="bold red", markup=False)
    if findings:
        print_findings(findings)


def left_of(table: pd.DataFrame, entry: Entry) -> float:
    """Recall@1 of ``entry`` under the worst attack of all accesses, mean of all directions; clean where nothing
    attacked.
    """
    worst = table[(table["model"] == entry.label) & (table["access"] == WORST)]
    return float(worst["recall_at_1"].mean()) if len(worst) else robust_recall(table, entry.label)
