"""Tables of a model under attacks, for the terminal and for Markdown from the same rows.

All values come in as shares in [0, 1] and are shown in percent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, Group

ATTACK_LABELS = {  # of the attacks in the order of the columns; others follow under their own names
    "clean": "no attack",
    "pgd": "PGD",
    "words": "words",
    "bert": "BERT-Attack",
    "hotflip": "HotFlip",
    "characters": "characters",
    "typos": "typos",
    "sep": "Sep-Attack",
    "coattack": "Co-Attack",
    "sga": "SGA",
    "sequential": "sequential",
    "fgsm": "FGSM",
    "apgd": "APGD",
    "square": "Square",
    "deepfool": "DeepFool",
    "cw": "C&W",
    "fab": "FAB",
    "fmn": "FMN",
    "apgd_ensemble": "APGD-CE + APGD-T",
    "ddn": "DDN",
    "alma": "ALMA",
    "minimum_norm": "minimum norm",
    "autoattack": "AutoAttack",
    "reduced_autoattack": "reduced AutoAttack",
    "retrieval_autoattack": "retrieval AutoAttack",
    "worst": "worst",
}
DIRECTIONS = {
    "image_to_text": "image to text",
    "text_to_image": "text to image",
    "image_to_class": "image to class",
    "text_to_class": "text to class",
}
_CLASSES = ("image_to_class", "text_to_class")
TITLES = {
    "recall_at_1": "Recall@1",
    "recall_at_5": "Recall@5",
    "recall_at_10": "Recall@10",
    "map_at_r": "mAP@R",
    "r_precision": "R-precision",
    "success_flip": "Attack success, correct that became wrong",
    "success_drop": "Attack success, drop of recall",
}
CLASS_TITLES = {
    **TITLES,
    "recall_at_1": "Accuracy",
    "claimed": "Accuracy, by what the adaptive attack claimed,",
    "recall_at_5": "Top-5 accuracy",
    "recall_at_10": "Top-10 accuracy",
    "success_drop": "Attack success, drop of accuracy",
}
PRECISIONS = ("map_at_r", "r_precision")
MISSING = "-"
NUMBER_STARTS = ("", *"0123456789-±.")


@dataclass(frozen=True)
class Grid:
    """A table as text: ``columns`` name the cells of each row; the first column is the name of the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def attack_grid(frame: "pd.DataFrame", measure: str = "recall_at_1") -> Grid:
    """One measure of models (rows) under attacks (columns); a cell is ``image-to-text / text-to-image``, or the one
    figure of a classifier, with the half-width of the interval below.

    Args:
        frame: one row for each model, attack and direction: ``model``, ``attack`` (``clean`` is no attack),
            ``direction`` (see `DIRECTIONS`), the measure as a share in [0, 1] and, where known,
            ``<measure>_low``, ``<measure>_high`` and ``<measure>_denominator``.
        measure: ``recall_at_1``, ``recall_at_5``, ``recall_at_10``, ``success_flip`` or ``success_drop``.

    Raises:
        ValueError: a value outside of [0, 1] (``success_drop``: [-1, 1]), or two rows for one cell.
    """
    _check(frame, measure)
    shown = frame[frame[measure].notna()]
    cells = {(str(row["model"]), str(row["attack"]), str(row["direction"])): row for _, row in shown.iterrows()}
    known = list(dict.fromkeys(attack for _, attack, _ in cells))
    attacks = [name for name in ATTACK_LABELS if name in known] + [name for name in known if name not in ATTACK_LABELS]
    models = list(dict.fromkeys(model for model, _, _ in cells))
    directions = directions_of(frame)
    rows = [[model, *(_cell(cells, model, attack, measure, directions) for attack in attacks)] for model in models]
    title = f"{title_of(measure, directions)} in percent, {' / '.join(DIRECTIONS[name] for name in directions)}"
    return Grid(title, ["model", *(label_of(name) for name in attacks)], rows, _note(shown, measure))


def precision_grid(frame: "pd.DataFrame") -> Grid:
    """mAP@R and R-precision of models (rows) under attacks (columns), as in `attack_grid`."""
    parts = [attack_grid(frame, measure) for measure in PRECISIONS]
    rows = [
        [f"{row[0]}, {TITLES[measure]}", *row[1:]]
        for together in zip(*(part.rows for part in parts), strict=True)
        for measure, row in zip(PRECISIONS, together, strict=True)
    ]
    ways = " / ".join(DIRECTIONS[name] for name in directions_of(frame))
    title = f"Precision over all positives of a query in percent, {ways}"
    return Grid(title, parts[0].columns, rows, parts[0].note)


def cost_grid(frame: "pd.DataFrame") -> Grid:
    """Cost of each attack per image (forward passes and gradients) and the median norm of its perturbations.

    Args:
        frame: one row for each model, attack and direction, with ``queries_mean``, ``gradients_mean`` and
            ``norm_median`` where they are known.
    """
    keys = [key for key in ("norm_median", "queries_mean", "gradients_mean") if key in frame]
    shown = frame[frame[keys].notna().any(axis=1)].drop_duplicates(["model", "attack"]) if keys else frame[:0]
    rows = [
        [
            str(row["model"]),
            label_of(str(row["attack"])),
            *(_number(row[key]) for key in keys),
        ]
        for _, row in shown.iterrows()
    ]
    headings = {"norm_median": "median norm", "queries_mean": "forward passes", "gradients_mean": "gradients"}
    note = (
        "The norm is that of successful perturbations, on pixels in [0, 1]; passes and gradients are those of an image."
    )
    if set(frame["direction"]) == {"text_to_class"}:
        note = "Passes and gradients are those of a sentence."
    return Grid(
        "How far the attacks went, and their cost", ["model", "attack", *(headings[k] for k in keys)], rows, note
    )


def fallen_grid(frame: "pd.DataFrame") -> Grid:
    """Attacks (rows) by models (columns): queries that fell, and in brackets those that fell under this attack alone.

    Args:
        frame: ``model``, ``attack``, ``direction``, ``fallen`` and ``alone``.
    """
    directions, models = directions_of(frame), list(dict.fromkeys(frame["model"]))
    counts = {(row["model"], row["attack"], row["direction"]): row for row in frame.to_dict("records")}

    def cell(model: str, attack: str) -> str:
        rows = [counts[model, attack, each] for each in directions if (model, attack, each) in counts]
        return " / ".join(f"{row['fallen']} ({row['alone']})" for row in rows) or MISSING

    attacks = list(dict.fromkeys(frame["attack"]))
    rows = [[label_of(attack), *(cell(model, attack) for model in models)] for attack in attacks]
    title = (
        f"Queries that fell, {' / '.join(DIRECTIONS[name] for name in directions)}, in brackets under no other attack"
    )
    return Grid(title, ["attack", *models], rows)


def member_grid(frame: "pd.DataFrame") -> Grid:
    """Members of ensembles (rows) by models (columns): the queries that fell by what the member gave.

    Args:
        frame: ``model``, ``attack``, ``member``, ``direction`` and ``fallen``.
    """
    directions, models = directions_of(frame), list(dict.fromkeys(frame["model"]))
    counts = frame.set_index(["attack", "member", "model", "direction"])["fallen"].to_dict()

    def cell(attack: str, member: str, model: str) -> str:
        return " / ".join(str(counts.get((attack, member, model, direction), 0)) for direction in directions)

    rows = [
        [label_of(attack), member, *(cell(attack, member, model) for model in models)]
        for attack, member in dict.fromkeys(zip(frame["attack"], frame["member"], strict=True))
    ]
    title = f"Queries that fell to each member of an ensemble, {' / '.join(DIRECTIONS[one] for one in directions)}"
    return Grid(title, ["attack", "member", *models], rows)


def curve_grid(frame: "pd.DataFrame", shown: Callable[[float], str]) -> Grid:
    """Recall@1 of models (rows) over the radius of the attack (columns, named by ``shown``), as in `attack_grid`."""
    directions = directions_of(frame)
    radii = sorted(set(frame["eps"]))
    cells = {(str(row["model"]), row["eps"], str(row["direction"])): row for row in frame.to_dict("records")}
    models = list(dict.fromkeys(frame["model"].astype(str)))
    rows = [[model, *(_cell(cells, model, radius, "recall_at_1", directions) for radius in radii)] for model in models]
    ways = " / ".join(DIRECTIONS[name] for name in directions)
    title = f"{title_of('recall_at_1', directions)} in percent over eps, {ways}"
    return Grid(title, ["model", *map(shown, radii)], rows, _note(frame, "recall_at_1"))


def as_rich(grid: Grid) -> "Group":
    """The grid as renderables of rich: title, table and note; columns of numbers are right-aligned.

    All of it is plain text: names may hold brackets or ``:smile:``, which rich would read as markup in a `str`.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(grid.columns):
        numbers = index > 0 and all(row[index][:1] in NUMBER_STARTS for row in grid.rows)
        table.add_column(Text(column), justify="right" if numbers else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(Text(grid.title, "bold"), table, *([Text(grid.note, "dim")] if grid.note else []))


def print_grid(grid: Grid, console: "Console | None" = None) -> None:
    """Print the grid, transposed where it is wider than the terminal; a file gets its full width."""
    from rich.console import Console

    shown = console or Console()
    if not shown.is_terminal:
        Console(file=shown.file, width=max(shown.width, _width(grid))).print(as_rich(grid))
    else:
        shown.print(as_rich(grid if _width(grid) <= shown.width else transposed(grid)))


def transposed(grid: Grid) -> Grid:
    """The grid with its rows as columns."""
    first, *names = grid.columns
    rows = [[name, *(row[index] for row in grid.rows)] for index, name in enumerate(names, start=1)]
    return Grid(grid.title, [first, *(row[0] for row in grid.rows)], rows, grid.note)


def _width(grid: Grid) -> int:
    """Columns of the terminal that `as_rich` takes for cells without a fold."""
    columns = zip(grid.columns, *grid.rows, strict=True)
    return 1 + sum(3 + max(len(line) for cell in column for line in cell.split("\n")) for column in columns)


def _check(frame: "pd.DataFrame", measure: str) -> None:
    values = frame[measure].dropna()
    lowest = -1.0 if measure == "success_drop" else 0.0
    if not values.between(lowest, 1.0).all():
        found = f"{values.min()} to {values.max()}"
        raise ValueError(f"{measure} is a share between {lowest:g} and 1, but the table holds {found}")
    keys = ["model", "attack", "direction"]
    if frame.duplicated(keys).any():
        twice = frame[frame.duplicated(keys)].iloc[0]
        raise ValueError(f"the table holds {', '.join(str(twice[key]) for key in keys)} twice")


def directions_of(frame: "pd.DataFrame") -> list[str]:
    """The directions of ``frame``; both of retrieval where it has either."""
    directions = set(frame["direction"])
    alone = [name for name in _CLASSES if directions == {name}]
    return alone or ["image_to_text", "text_to_image"]


def title_of(measure: str, directions: Sequence[str]) -> str:
    """``measure`` in words; recall of the label among the classes is accuracy."""
    if set(_CLASSES) & set(directions):
        return CLASS_TITLES.get(measure, measure)
    return TITLES.get(measure, measure)


def _cell(
    cells: Mapping[tuple[str, Any, str], Any], model: str, column: Any, measure: str, directions: Sequence[str]
) -> str:
    found = [cells.get((model, column, direction)) for direction in directions]
    if all(row is None for row in found):
        return MISSING
    values = " / ".join(MISSING if row is None else f"{100 * row[measure]:.1f}" for row in found)
    spreads = [_spread(row, measure) for row in found]
    if all(spread is None for spread in spreads):
        return values
    return f"{values}\n" + " / ".join(spread or MISSING for spread in spreads)


def _spread(row: Any, measure: str) -> str | None:
    if row is None or f"{measure}_low" not in row or row[f"{measure}_low"] != row[f"{measure}_low"]:
        return None
    # The farther end: near 0 and 100 % an interval is lopsided, and half its width would promise too much.
    far = max(row[measure] - row[f"{measure}_low"], row[f"{measure}_high"] - row[measure])
    return f"±{100 * far:.1f}"


def _note(frame: "pd.DataFrame", measure: str) -> str:
    parts = []
    if f"{measure}_low" in frame and frame[f"{measure}_low"].notna().any():
        parts.append("± reaches to the farther end of the 95 % interval.")
    parts += _denominators(frame, measure)
    return " ".join(parts)


def _denominators(frame: "pd.DataFrame", measure: str) -> list[str]:
    column = f"{measure}_denominator"
    if column not in frame:
        return []
    whole = "queries that the same model answers rightly without attack" if measure == "success_flip" else "queries"
    counts = []
    for model, rows in frame.groupby("model", sort=False):
        numbers = [_range(rows.loc[rows["direction"] == direction, column]) for direction in directions_of(frame)]
        counts.append(f"{model} {' / '.join(numbers)}")
    return [f"Of the {whole}: {'; '.join(counts)}."]


def label_of(attack: str) -> str:
    """The name of an attack as the literature writes it; its own where `ATTACK_LABELS` has none."""
    return ATTACK_LABELS.get(attack, attack)


def _number(value: float) -> str:
    return MISSING if value != value else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _range(values: "pd.Series[Any]") -> str:
    numbers = sorted({int(value) for value in values.dropna()})
    if not numbers:
        return MISSING
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
