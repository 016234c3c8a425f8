"""Results of `robustcli augment-quality`: one table over all directories, a picture, and the prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from robustcli.data import ImageTextData
from robustcli.report.album import Album
from robustcli.report.figures import FAINT, INK, save
from robustcli.report.html import publish
from robustcli.report.markdown import Report, literal
from robustcli.report.tables import MISSING, Grid, print_grid
from robustcli.runs.manifest import now
from robustcli.runs.run import Run
from robustcli.utils import files

_KEYS = ("augmentation", "side", "predicted")
_MAIN = {  # figure -> heading, factor and digits
    "per_item": ("of an image", 1, 2),
    "alignment_ratio": ("alignment, % of own", 100, 1),
    "percentile": ("percentile", 100, 1),
    "true_share": ("true, %", 100, 1),
    "diversity_ratio": ("diversity, % of two images", 100, 1),
    "gap": ("gap", 1, 3),
}
_ALIGNMENT = {
    "alignment": ("cosine", 1, 3),
    "alignment_original": ("own pairs", 1, 3),
    "alignment_difference": ("difference", 1, 3),
    "percentile_original": ("percentile of own pairs", 100, 1),
    "diversity": ("diversity", 1, 3),
    "diversity_among": ("among", 1, 3),
    "diversity_to_original": ("to the original", 1, 3),
    "frechet": ("Frechet", 1, 4),
    "mmd": ("MMD, squared", 1, 4),
}
_TEXTS = {
    "distinct_1": ("distinct-1", 1, 3),
    "distinct_2": ("distinct-2", 1, 3),
    "self_bleu": ("self-BLEU", 1, 1),
    "edits": ("words edited", 1, 2),
    "words": ("words", 1, 2),
    "words_difference": ("more than own", 1, 2),
    "cut_share": ("cut, %", 100, 1),
    "new_word_share": ("new words, %", 100, 2),
    "unigram_divergence": ("divergence of words, bits", 1, 3),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The rule of the prediction: aligned enough, near enough, then by diversity.

    Args:
        alignment: least ``alignment_ratio``.
        gap: largest ``gap``.
    """

    alignment: float
    gap: float

    def __str__(self) -> str:
        return (
            f"Expected to help: augmentations with at least {100 * self.alignment:g} % of the alignment of the own "
            f"pairs and a gap of at most {self.gap:g}, the more diverse the more. The rule and its constants are not "
            "verified by trainings."
        )

    def objections(self, row: Mapping[Any, Any]) -> list[str]:
        """The criteria that a row of figures does not meet; one that is not defined is not met."""
        ratio, gap = row["alignment_ratio"], row["gap"]
        met = {
            "alignment": not pd.isna(ratio) and ratio >= self.alignment,
            "gap": not pd.isna(gap) and gap <= self.gap,
        }
        return [name for name, is_met in met.items() if not is_met]


def write_quality(
    run: Run,
    data: ImageTextData,
    records: pd.DataFrame,
    figures: pd.DataFrame,
    *,
    rule: Rule,
    items: int,
    notes: Sequence[str],
) -> float:
    """Write records, metrics, prediction, picture and report, and print the table; returns how many will help.

    Args:
        records, figures: of all directories, see `robustcli.evaluation.augmentation.Quality`, with ``augmentation``.
        notes: sentences for the foot of the table.
    """
    run.write_records(records)
    figures = predicted(figures, rule)
    run.write_metrics(_flat(figures), figures)
    several = figures["augmentation"].duplicated().any()
    names = [
        f"{row['augmentation']}, {row['side']}" if several else str(row["augmentation"])
        for row in figures.to_dict("records")
    ]
    order = figures.assign(name=names).sort_values("rank", kind="stable")
    files.write_json(
        run.directory / "prediction.json",
        {
            "date": now(),
            "rule": str(rule),
            "constants": asdict(rule),
            "verified": False,
            "order": [_entry(row) for row in order.to_dict("records")],
        },
    )
    main = _grid(f"Augmentations of {data.name} {data.split}", figures, names, _MAIN, predicted=True)
    main = Grid(main.title, main.columns, main.rows, " ".join([str(rule), *notes]))
    grids = [main, _grid("Alignment, diversity and gap", figures, names, _ALIGNMENT)]
    if (figures["side"] == "captions").any():
        texts = figures["side"] == "captions"
        shown = [name for name, is_text in zip(names, texts, strict=True) if is_text]
        grids.append(_grid("Words of the new captions", figures[texts], shown, _TEXTS))
    album = Album(run)
    caption = "Alignment against diversity; the colour is the gap. The line is the least alignment of the rule."
    album.draw("quality", caption, lambda path: _draw(figures, names, rule, path))
    report = Report(
        title=f"Quality of augmented pairs of {data.name}",
        threat=[],
        tables=grids,
        figures=album.pictures,
        inputs=data.notes,
        caveats=[
            *map(literal, album.failures),
            f"Measured on at most {items:,} images of the set, with one frozen reference model: another gives other "
            "figures.",
            "The gap is the Frechet distance in units of the variance of the originals; it is biased upwards where "
            "there are few pairs. The squared MMD is not biased.",
            "± reaches to the farther end of the 95 % interval: a bootstrap over images, and for the gap, Frechet "
            "distance, MMD and divergence a jackknife.",
            "Diversity: 1 - cosine among the augmentations of an image and to the original, in percent of that between "
            "the originals of two images.",
        ],
    )
    publish(run, report)
    print_grid(main)
    for sentence in album.failures:
        print(sentence, flush=True)
    return float((figures["predicted"].str.isdigit()).sum())


def predicted(figures: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """``figures`` with ``rank``, the place from 1 in the order of expected gain, and ``predicted``: this place, or what
    speaks against a gain.

    Those that meet the rule stand first, by diversity; then the others, by alignment.
    """
    rows = figures.to_dict("records")
    objections = [rule.objections(row) for row in rows]

    def key(place: int) -> tuple[bool, float]:
        by = "alignment_ratio" if objections[place] else "diversity_ratio"
        value = rows[place].get(by)
        return bool(objections[place]), 0.0 if value is None or pd.isna(value) else -value

    order = sorted(range(len(rows)), key=key)
    rank = {place: number for number, place in enumerate(order, start=1)}
    told = [
        f"no: {' and '.join(objections[place])}" if objections[place] else str(rank[place])
        for place in range(len(rows))
    ]
    return figures.assign(rank=[rank[place] for place in range(len(rows))], predicted=told)


def _entry(row: Mapping[Any, Any]) -> dict[str, Any]:
    shown = {key: None if pd.isna(row[key]) else row[key] for key in ("alignment_ratio", "gap", "diversity_ratio")}
    kept = {"augmentation": row["augmentation"], "side": row["side"], "gain": row["predicted"].isdigit(), **shown}
    return kept | {"predicted": row["predicted"]}


def _flat(figures: pd.DataFrame) -> dict[str, float]:
    """``<augmentation>/<side>/<figure>`` for every figure that is defined."""
    return {
        "/".join([str(row["augmentation"]), str(row["side"]), str(name)]): value
        for row in figures.to_dict("records")
        for name, value in row.items()
        if name not in _KEYS and not pd.isna(value)
    }


def _grid(
    title: str,
    figures: pd.DataFrame,
    names: Sequence[str],
    shown: Mapping[str, tuple[str, float, int]],
    *,
    predicted: bool = False,
) -> Grid:
    """The figures of ``shown`` that any row has."""
    columns = {key: each for key, each in shown.items() if key in figures and figures[key].notna().any()}
    rows = [
        [
            name,
            *(_cell(row, key, factor, digits) for key, (_, factor, digits) in columns.items()),
            *([str(row["predicted"])] if predicted else []),
        ]
        for name, row in zip(names, figures.to_dict("records"), strict=True)
    ]
    headings = ["augmentation", *(heading for heading, _, _ in columns.values())]
    return Grid(title, [*headings, *(["predicted"] if predicted else [])], rows)


def _cell(row: Mapping[Any, Any], key: str, factor: float, digits: int) -> str:
    if pd.isna(row[key]):
        return MISSING
    value = f"{factor * row[key]:.{digits}f}"
    low = row.get(f"{key}_low")
    if low is None or pd.isna(low):
        return value
    return f"{value}\n±{factor * max(row[key] - low, row[f'{key}_high'] - row[key]):.{digits}f}"


def _draw(figures: pd.DataFrame, names: Sequence[str], rule: Rule, path: Path) -> None:
    """Points of diversity and alignment, coloured by the gap, with their names."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    x, y = 100 * figures["diversity_ratio"], 100 * figures["alignment_ratio"]
    points = axes.scatter(x, y, c=figures["gap"], cmap="viridis", s=60, edgecolors=INK, linewidths=0.6, zorder=3)
    for name, at, up in zip(names, x, y, strict=True):
        axes.annotate(name, (at, up), xytext=(6, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.axhline(100 * rule.alignment, color=INK, linewidth=0.8, linestyle="--")
    axes.margins(x=0.25, y=0.15)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("diversity (% of that of two images of the set)", color=INK)
    axes.set_ylabel("alignment (% of the own pairs)", color=INK)
    figure.colorbar(points, ax=axes, label="gap")
    save(figure, path)
