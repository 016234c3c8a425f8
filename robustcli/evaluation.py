"""What every command that judges models does with them: attack, record, summarise, draw, report.

A model goes by its label, for example ``before`` and ``after``; an attack by its name among the judges.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import CandidateSource, RetrievalAttack, parse_eps
from robustcli.attacks.threat import parse_number
from robustcli.building import build_attack, build_judges
from robustcli.data.base import ImageTextData
from robustcli.errors import UserError
from robustcli.judging import CLEAN, Attacked, Judge, summarise
from robustcli.metrics import chance_recall
from robustcli.models import DualEncoder
from robustcli.report.figures import Example, examples, recall_over_eps
from robustcli.report.markdown import Report, render, threat_model
from robustcli.report.progress import Progress
from robustcli.report.tables import attack_grid, print_grid
from robustcli.run import Run

WORST = "worst"
_CURVE = "curve-"
_EXAMPLES = 4
Keep = Callable[[str, Attacked], None]


@dataclass(frozen=True)
class Bench:
    """Where models are judged.

    Attributes:
        judge: the gallery with its relation of truth.
        attacks: the judges by name, all within one budget.
        curve: for each eps of the curve of robust recall the attack that draws it, called ``curve_name``; None at the
            budget itself, where the judge of that name has done it.
        budget: the budget in words.
        resamples, seed: of the intervals.
    """

    judge: Judge
    attacks: Mapping[str, RetrievalAttack]
    curve: Mapping[float, RetrievalAttack | None]
    curve_name: str
    budget: list[str]
    resamples: int
    seed: int


def build_bench(
    config: DictConfig, data: ImageTextData, judges: DictConfig, candidates: CandidateSource, curve_attack: str
) -> Bench:
    """The bench of a command: ``evaluation`` says on what, ``judges`` by what, ``attack`` within which budget.

    Args:
        curve_attack: name of the judge that draws the curve.
    """
    settings, budget = config.evaluation, config.attack
    attacks = build_judges(judges, budget, candidates, seed=config.seed)
    _check_curve(settings, judges, curve_attack)
    return Bench(
        judge=Judge(data, batch_size=settings.batch_size, limit=settings.limit),
        attacks=attacks,
        curve=_build_curve(config, judges[curve_attack], candidates)
        if curve_attack in attacks and budget.image
        else {},
        curve_name=curve_attack,
        budget=_budget(budget),
        resamples=settings.resamples,
        seed=config.seed,
    )


def judge_model(run: Run, bench: Bench, model: DualEncoder, label: str, keep: Keep | None = None) -> pd.DataFrame:
    """Records of ``model`` clean, attacked and along the curve; what a killed run had judged is not judged again.

    Args:
        keep: is given the name of each attack and what it put out.
    """
    plan: dict[str, RetrievalAttack | None] = {CLEAN: None, **bench.attacks}
    plan |= {_on_curve(eps): attack for eps, attack in bench.curve.items() if attack is not None}
    model.eval()
    parts = {name: _judged(run, bench, model, label, name, attack, keep) for name, attack in plan.items()}
    for eps, attack in bench.curve.items():
        if attack is None:
            parts[_on_curve(eps)] = parts[bench.curve_name].assign(attack=_on_curve(eps))
    return pd.concat(parts.values(), ignore_index=True)


def write_results(
    run: Run,
    bench: Bench,
    models: Mapping[str, DualEncoder],
    records: pd.DataFrame,
    *,
    title: str,
    metrics: Mapping[str, float] | None = None,
    shown: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Write records, metrics, pictures and the report of judged models, print the table, and return the summary.

    Args:
        models: by label, in the order of the table.
        metrics: figures of the command's own, which join those of the table.
        shown: what a label is called in tables and pictures, where that is more than the label.
    """
    whole = summarise(with_worst(records), resamples=bench.resamples, seed=bench.seed)
    table, curve = _without_curve(whole)
    run.write_records(records)
    run.write_metrics({**(metrics or {}), **_flat(table), **_flat(curve), **_chance(bench.judge)}, whole)
    names = {label: (shown or {}).get(label, label) for label in models}
    table_shown, curve_shown = (frame.assign(model=frame["model"].map(names)) for frame in (table, curve))
    grid = attack_grid(table_shown)
    figures = [*_draw_curve(run, bench, curve_shown), *_draw_examples(run, bench, models, table, records)]
    grids = [
        grid,
        *(attack_grid(table_shown, measure) for measure in ("success_flip", "success_drop") if measure in table),
    ]
    report = Report(title=title, threat=bench.budget, tables=grids, figures=figures, caveats=_caveats(bench, records))
    run.write_report(render(report, run.manifest, run.directory))
    print_grid(grid)
    return table


def _on_curve(eps: float) -> str:
    return f"{_CURVE}{eps:.6f}"


def with_worst(records: pd.DataFrame) -> pd.DataFrame:
    """The records with rows of an attack ``worst``: each query's row of the judge that hurts it most.

    That is what an attacker has who may choose for each query; the curve does not count among the judges.
    """
    attacked = records[records["adversarial_rank"].notna() & ~records["attack"].str.startswith(_CURVE)]
    if attacked["attack"].nunique() < 2:
        return records
    hardest = attacked.groupby(["model", "direction", "query_id"], sort=False)["adversarial_rank"].idxmax()
    return pd.concat([records, attacked.loc[hardest].assign(attack=WORST)], ignore_index=True)


def robust_recall(table: pd.DataFrame, label: str) -> float:
    """Recall@1 of model ``label`` under its worst judge, mean of both directions; clean where nothing attacked."""
    return float(_mean_recall(table, label).min())


def worst_attack(table: pd.DataFrame, label: str) -> str | None:
    """Name of the judge that leaves ``label`` the least recall@1 (mean of both directions); None without judges."""
    attacked = _mean_recall(table[~table["attack"].isin([CLEAN, WORST])], label)
    return None if attacked.empty else str(attacked.idxmin())


def _mean_recall(table: pd.DataFrame, label: str) -> "pd.Series[float]":
    return table[table["model"] == label].groupby("attack", sort=False)["recall_at_1"].mean()


def _judged(
    run: Run, bench: Bench, model: DualEncoder, label: str, name: str, attack: RetrievalAttack | None, keep: Keep | None
) -> pd.DataFrame:
    kept = None if keep is None else partial(keep, name)
    with Progress(None if attack is None else len(bench.judge), f"{label}: {name}", unit="images") as progress:
        bench.judge.on_chunk = progress.advance
        return run.records_part(
            f"{label}-{name}".replace(" ", "-"), lambda: bench.judge.records(model, label, name, attack, kept)
        )


def _check_curve(settings: DictConfig, judges: DictConfig, name: str) -> None:
    if settings.eps_curve and judges and name not in judges:
        raise UserError(
            f"evaluation.curve_attack is {name!r}, but the judges are {', '.join(map(str, judges))}: "
            "choose one of them, or evaluation.eps_curve=[] for no curve."
        )


def _build_curve(
    config: DictConfig, judge: DictConfig, candidates: CandidateSource
) -> dict[float, RetrievalAttack | None]:
    """The attack of the config ``judge`` for each eps: ``evaluation.eps_curve`` times that of ``attack``."""
    budget: Any = OmegaConf.to_container(config.attack, resolve=True)
    whole = parse_eps(budget["image"]["eps"], budget["image"]["norm"])
    curve: dict[float, RetrievalAttack | None] = {}
    for factor in config.evaluation.eps_curve:
        eps = whole * parse_number("eps_curve", factor)
        wanted = {**budget, "image": {**budget["image"], "eps": eps}}
        same = eps == whole
        curve[eps] = None if same else build_attack(judge, candidates, seed=config.seed, budget=wanted)
    return curve


def _budget(attack: DictConfig) -> list[str]:
    image, text = attack.get("image"), attack.get("text")
    return threat_model(
        norm=image.norm if image else None, eps=image.eps if image else None, max_words=text.max_words if text else None
    )


def _without_curve(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    on_curve = table["attack"].str.startswith(_CURVE)
    curve = table[on_curve]
    return table[~on_curve], curve.assign(eps=curve["attack"].str.removeprefix(_CURVE).astype(float))


def _flat(table: pd.DataFrame) -> dict[str, float]:
    """``<model>/<attack>/<direction>/<figure>`` for every figure that is defined."""
    keys = ["model", "attack", "direction"]
    return {
        "/".join([*(str(row[key]) for key in keys), str(name)]): value
        for row in table.to_dict("records")
        for name, value in row.items()
        if name not in [*keys, "eps"] and not pd.isna(value)
    }


def _chance(judge: Judge) -> dict[str, float]:
    chance = chance_recall(judge.relevance, 1)
    return {
        "chance/image_to_text/recall_at_1": chance.image_to_text,
        "chance/text_to_image/recall_at_1": chance.text_to_image,
    }


def _draw_curve(run: Run, bench: Bench, curve: pd.DataFrame) -> list[tuple[str, Any]]:
    if curve.empty:
        return []
    path = run.figure("recall_over_eps")
    recall_over_eps(curve, path, budget=bench.curve_name)
    return [
        (f"Recall@1 over the eps of the image attack ({bench.curve_name}, which edits captions at eps 0 too).", path)
    ]


def _draw_examples(
    run: Run, bench: Bench, models: Mapping[str, DualEncoder], table: pd.DataFrame, records: pd.DataFrame
) -> list[tuple[str, Any]]:
    """Each model under its own worst attack, on the same images; per-sample draws make them those of the records."""
    drawn = []
    for label, model in models.items():
        name = worst_attack(table, label)
        if name is None:
            continue
        path = run.figure(f"examples_{label.replace(' ', '_')}")
        found = records[(records["model"] == label) & (records["attack"] == name)]
        examples(_example_rows(bench, model, bench.attacks[name], found), path, title=f"{label}, under {name}")
        drawn.append((f"{label}: images and captions under {name}, its worst attack in the table.", path))
    return drawn


def _example_rows(bench: Bench, model: DualEncoder, attack: RetrievalAttack, records: pd.DataFrame) -> list[Example]:
    """Images spread over the gallery, each with the first of its captions that was edited, or else its first."""
    judge = bench.judge
    rows = torch.linspace(0, len(judge) - 1, min(_EXAMPLES, len(judge))).long()
    attacked, clean = judge.attack(model, attack, rows), judge.data.images(rows)
    own = torch.nonzero(torch.isin(judge.owner, rows)).flatten().tolist()
    ranks = records.set_index(["direction", "query_id"]).to_dict("index")
    shown = []
    for place, row in enumerate(rows.tolist()):
        mine = [j for j, caption in enumerate(own) if judge.owner[caption] == row]
        j = next((j for j in mine if attacked.captions[j] != judge.captions[own[j]]), mine[0])
        image = ranks["image_to_text", judge.data.image_ids[row]]
        caption = ranks["text_to_image", str(int(judge.caption_rows[own[j]]))]
        shown.append(
            Example(
                clean=clean[place],
                adversarial=attacked.images[place],
                caption=judge.captions[own[j]],
                adversarial_caption=attacked.captions[j],
                note=f"rank of a true caption {_change(image)}, of a true image {_change(caption)}",
            )
        )
    return shown


def _change(record: Mapping[Hashable, Any]) -> str:
    return f"{record['clean_rank']} → {record['adversarial_rank']}"


def _caveats(bench: Bench, records: pd.DataFrame) -> list[str]:
    notes = [
        f"{len(bench.judge)} images and {len(bench.judge.captions)} captions; other galleries give other figures.",
        "Both sides of every pair are attacked at once where an attack has both parts; each query is judged in the "
        "attacked gallery. *worst*: each query under the attack that hurts it most, in the gallery of that attack.",
        "A robust figure is an upper bound: a stronger attack can only lower it.",
    ]
    broken = records[["zero_gradients", "nan_gradients"]].fillna(0).sum() if "zero_gradients" in records else None
    if broken is not None and broken.sum() > 0:
        notes.append(
            f"SUSPECT: {int(broken['zero_gradients'])} gradients were all zero and {int(broken['nan_gradients'])} held "
            "a NaN: the gradient attacks were blind there, and their figures flatter."
        )
    return notes
