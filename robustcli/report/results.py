"""Results of an evaluation in the run directory: records, metrics, tables, pictures and the report.

A model is named by its label, for example ``before`` and ``after``; an attack by its name in the suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from robustcli.diagnostics import OK, SUSPECT, Finding, refuse_suspects, verdict
from robustcli.evaluation import CLEAN, Entry, Evaluation, Group, SentenceEvaluator
from robustcli.evaluation.aggregate import (
    at_radius,
    fallen_by_attack,
    fallen_by_member,
    paper_table,
    resubmitted,
    robust_recall,
    summarise,
    up_to_radius,
    with_worst,
    worst_attack,
)
from robustcli.evaluation.records import WORST
from robustcli.report.album import Album
from robustcli.report.defences import (
    NO_ADAPTIVE,
    access_grid,
    masking_warnings,
    paper_grid,
    resubmission_grid,
    strict_grid,
)
from robustcli.report.diagnose import coverages, diagnostics_of, transfers
from robustcli.report.diagnostics import diagnostics_grid, print_findings, with_verdicts
from robustcli.report.edited import edited_grid
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.pictures import draw_defences, draw_models
from robustcli.report.tables import (
    DIRECTIONS,
    Grid,
    attack_grid,
    cost_grid,
    directions_of,
    fallen_grid,
    label_of,
    member_grid,
    precision_grid,
    print_grid,
)
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
    share: float | None = None,
    transfer: bool = False,
    proven: Grid | None = None,
) -> pd.DataFrame:
    """Write records, metrics, pictures and the report of an evaluation and print its tables; returns the summary at the
    radius of the table.

    Args:
        groups: the models, in the order of the table.
        records: one row a query, model, attack, access and radius.
        metrics: of the command itself; they join those of the table.
        shown: label -> longer name in tables and pictures.
        diagnostics, share: extent of the diagnostics, and how much they may take, see `diagnostics_of`.
        transfer: measure the transfer between models too, at the cost of one more attack on each of them.
        proven: a table of certificates, which stands second.

    Raises:
        SuspectClaim: a figure is suspect under ``diagnostics="strict"``; all results are written by then.
    """
    defended = any(group.defended for group in groups)
    run.write_records(records)
    table, curve = _summarise_defences(evaluation, records) if defended else _summarise_models(evaluation, records)
    chance = {f"chance/{name}/recall_at_1": value for name, value in evaluation.evaluator.chance().items()}
    flat = {**(metrics or {}), **_flat(table, defended), **_flat(curve, defended, curve=True), **chance}
    run.write_metrics(flat, pd.concat([table, curve], ignore_index=True))
    _track_curves(run, pd.concat([table, curve], ignore_index=True))
    # Records and metrics are on disk from here on: diagnostics, transfer and pictures attack again and may be killed.
    names = {entry.label: (shown or {}).get(entry.label, entry.label) for group in groups for entry in group.entries}
    with run.phase("diagnostics"):
        found = diagnostics_of(run, evaluation, groups, table, records, extent=diagnostics, share=share)
    findings = [replace(each, model=names[each.model]) for each in found]
    seen, seen_curve = (frame.assign(model=frame["model"].map(names)) for frame in (table, curve))
    warnings = _warnings(evaluation, seen, seen_curve, records) if defended else []
    album, transferred = Album(run), list[Grid]()
    if transfer and evaluation.attacks:
        attack = _curve_attack(evaluation)
        transferred = album.attempt("the transfer table", lambda: transfers(run, evaluation, groups, attack)) or []
    if defended:
        grids, printed = _defence_grids(evaluation, records, seen, seen_curve), 1
        if proven is not None:
            grids, printed = [grids[0], proven, *grids[1:]], 2
        draw_defences(album, evaluation, groups, pd.concat([seen, seen_curve], ignore_index=True))
    else:
        fallen = _fallen_grids(at_radius(records, evaluation.threat.radius).replace({"model": names}))
        precisions = [precision_grid(seen)] if evaluation.evaluator.several else []
        grids = _model_grids(seen, [*precisions, *fallen], findings)
        printed = 1 + len(precisions) + len(fallen) + _minimum_norm_only(evaluation)
        grids += _edited_grids(evaluation, groups, table, records)
        draw_models(album, evaluation, groups, table, seen_curve, records, _curve_attack(evaluation))
    models = [group.bare.model for group in groups]
    inputs = [*evaluation.evaluator.inputs(models), *_stands(evaluation, models)]
    notes = [grids[0].note, evaluation.evaluator.shortened, _baselines(evaluation), *coverages(evaluation)]
    grids[0] = replace(grids[0], note=" ".join(filter(None, notes)))
    report = Report(
        title=title,
        answer=_answer(seen, findings),
        summary="\n\n".join(f"**{sentence}**" for sentence in warnings),
        threat=_threat(evaluation, defended=defended),
        tables=[*grids, *([diagnostics_grid(findings)] if findings else []), *transferred],
        figures=album.pictures,
        inputs=inputs,
        caveats=[*map(literal, album.failures), *_caveats(evaluation, groups, records)],
    )
    publish(run, report)
    _print([*grids[:printed], *transferred], inputs, [*warnings, *album.failures], findings)
    if diagnostics == "strict":  # last: a refused claim keeps its results on disk
        refuse_suspects(findings)
    return table


def _track_curves(run: Run, rows: pd.DataFrame) -> None:
    """Recall over eps of each attack for the trackers; their step is eps in thousandths of the pixel range."""
    points: dict[int, dict[str, float]] = {}
    for row in rows[(rows["attack"] != CLEAN) & rows["eps"].notna()].to_dict("records"):
        parts = [str(row[key]) for key in ("model", "access", "attack", "direction")]
        name = "/".join(["curve", *parts, "recall_at_1"])
        points.setdefault(round(1000 * row["eps"]), {})[name] = float(row["recall_at_1"])
    for step in sorted(points):
        run.trackers.scalars(step, points[step])


def _summarise_models(evaluation: Evaluation, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summaries of models without a test-time defence: at the radius of the table, and along the curve."""
    settings = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    table = summarise(with_worst(at_radius(records, evaluation.threat.radius)), **settings)
    own = records
    if evaluation.curve is not None:
        own = records[records["attack"].isin([CLEAN, _curve_attack(evaluation)])]
    radii = evaluation.radii
    if not radii and evaluation.threat.radius is None and evaluation.attacks:
        radii = evaluation.norms(own)
    found = [with_worst(at_radius(own, eps)) for eps in radii]
    points = [part[part["attack"] != CLEAN].assign(eps=eps) for part, eps in zip(found, radii, strict=True)]
    curve = pd.concat(points) if points else records[:0]
    return table, summarise(curve, **settings) if len(curve) else table[:0]


def _summarise_defences(evaluation: Evaluation, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summaries of models behind test-time defences: at the radius of the table, and at the others."""
    settings = {"resamples": evaluation.resamples, "seed": evaluation.seed}
    main, *others = [evaluation.threat.ball.eps, *(eps for eps in evaluation.radii if eps != evaluation.threat.radius)]
    clean = records[records["access"] == CLEAN]
    if not evaluation.attacks:
        table = summarise(clean, **settings)
        return table, table[:0]
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


def _fallen_grids(records: pd.DataFrame) -> list[Grid]:
    by_attack, by_member = fallen_by_attack(records), fallen_by_member(records)
    return [
        *([fallen_grid(by_attack)] if len(by_attack) else []),
        *([member_grid(by_member)] if len(by_member) else []),
    ]


def _model_grids(table: pd.DataFrame, further: Sequence[Grid], findings: Sequence[Finding]) -> list[Grid]:
    costs, measures = cost_grid(table), [name for name in ("success_flip", "success_drop") if name in table]
    grids = [with_verdicts(attack_grid(table), findings), *further]
    grids += [costs] if costs.rows else []
    return [*grids, *(attack_grid(table, measure) for measure in measures)]


def _edited_grids(
    evaluation: Evaluation, groups: Sequence[Group], table: pd.DataFrame, records: pd.DataFrame
) -> list[Grid]:
    """Of sentences a table for each model, under its worst attack; none of what has pictures."""
    evaluator = evaluation.evaluator
    if not isinstance(evaluator, SentenceEvaluator):
        return []
    found = [(group.bare.label, worst_attack(table, group.bare.label)) for group in groups]
    return [edited_grid(evaluator, records, label, worst) for label, worst in found if worst is not None]


def _defence_grids(
    evaluation: Evaluation, records: pd.DataFrame, table: pd.DataFrame, curve: pd.DataFrame
) -> list[Grid]:
    norm, radii = evaluation.threat.norm, _radii(evaluation)
    whole = pd.concat([table, curve], ignore_index=True)
    eps = evaluation.threat.ball.eps
    if not evaluation.attacks:
        return [access_grid(table, eps, norm=norm)]
    grids = [access_grid(table, eps, norm=norm), strict_grid(whole, radii, norm=norm)]
    again = resubmitted(records, eps, resamples=evaluation.resamples, seed=evaluation.seed)
    grids += [resubmission_grid(again, eps, norm=norm)] if len(again) else []
    claimed = paper_table(records, radii, resamples=evaluation.resamples, seed=evaluation.seed)
    return [*grids, *([paper_grid(claimed, radii, norm=norm)] if len(claimed) else [])]


def _answer(table: pd.DataFrame, findings: Sequence[Finding]) -> list[str]:
    """A sentence a model: what is right without attack and under the worst of them, and whether that is believed."""
    directions = directions_of(table)
    ways = "" if len(directions) == 1 else f" ({' / '.join(DIRECTIONS[name] for name in directions)})"
    sentences = []
    for model, part in table.groupby("model", sort=False):
        attacked = part[part["attack"] != CLEAN]
        said = f"{model}: {_percent(part[part['attack'] == CLEAN], directions)} % right without attack{ways}"
        if len(attacked):
            word = verdict([each for each in findings if each.model == model])
            believed = {OK: "; its diagnostics found nothing against that", SUSPECT: ", which is SUSPECT: see below"}
            said += f", {_percent(attacked, directions)} % under the worst attack{believed.get(word, '')}"
        sentences.append(f"{said}.")
    return sentences


def _percent(rows: pd.DataFrame, directions: Sequence[str]) -> str:
    """The least recall@1 of ``rows`` by direction."""
    least = rows.groupby("direction")["recall_at_1"].min()
    return " / ".join(f"{100 * least[each]:.1f}" if each in least else "-" for each in directions)


def _warnings(evaluation: Evaluation, table: pd.DataFrame, curve: pd.DataFrame, records: pd.DataFrame) -> list[str]:
    whole = pd.concat([table, curve], ignore_index=True)
    known = set(records["access"])
    missing = [] if known & {"adaptive", "transfer"} else [NO_ADAPTIVE]
    return [*missing, *masking_warnings(whole, _radii(evaluation), norm=evaluation.threat.norm)]


def _radii(evaluation: Evaluation) -> list[float]:
    return sorted({evaluation.threat.ball.eps, *evaluation.radii})


def _curve_attack(evaluation: Evaluation) -> str:
    """Name of the attack of the curve and of the transfer table."""
    return evaluation.curve or next(reversed(list(evaluation.attacks)), "")


def _baselines(evaluation: Evaluation) -> str:
    """The sentence under the table on attacks that are baselines; empty where there are none."""
    names = [label_of(name) for name, attack in evaluation.attacks.items() if attack.baseline]
    if not names:
        return ""
    return f"Baselines, too weak for a claim of robustness: {', '.join(names)}."


def _stands(evaluation: Evaluation, models: Sequence[Any]) -> list[str]:
    """A sentence on where the perturbation stands, if images are perturbed and resized."""
    attacked = evaluation.attacks and evaluation.threat.moves_images
    if not attacked or not evaluation.evaluator.resizes(models):
        return []
    if evaluation.evaluator.at_model:
        return ["The perturbation stands at the input of the model, after the resize (threat.at=model)."]
    return ["The perturbation stands in the pixels of the data set, before the resize (threat.at=data)."]


def _minimum_norm_only(evaluation: Evaluation) -> bool:
    """True if the threat model is unbounded: the norms are the result, and their table is printed too."""
    return evaluation.threat.radius is None and bool(evaluation.attacks)


def _threat(evaluation: Evaluation, *, defended: bool) -> list[str]:
    directions, attacker = set(evaluation.evaluator.directions), evaluation.attacker
    images = "text_to_class" not in directions
    captions = bool(directions & {"text_to_image", "text_to_class"})
    access = ("transfer",) if attacker.surrogate is not None else ("adaptive",)
    if not defended:
        return threat_model(evaluation.threat, captions=captions, images=images, access=access)
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


def _print(grids: Sequence[Grid], inputs: Sequence[str], warnings: Sequence[str], findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    for grid in grids:
        print_grid(grid)
    for sentence in inputs:
        Console(soft_wrap=True).print(Text(sentence, "dim"))
    for sentence in warnings:
        Console().print(Text(sentence, "bold red"))
    if findings:
        print_findings(findings)


def worst_case_recall(table: pd.DataFrame, entry: Entry) -> float:
    """Recall@1 of ``entry`` under the worst attack of all accesses, mean over the directions; clean without attacks."""
    worst = table[(table["model"] == entry.label) & (table["access"] == WORST)]
    return float(worst["recall_at_1"].mean()) if len(worst) else robust_recall(table, entry.label)
