"""Tables and figures of test-time defences: attacker's access, accuracy over the radius, strips of images.

Shapes: C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from robustcli.attacks.core.threat import NORMS, shown
from robustcli.evaluation.records import BARE, CLEAN, WORST
from robustcli.evaluation.smoothing import ABSTAINED, certified_accuracy
from robustcli.report.figures import COLOURS, FAINT, INK, MARKERS, legend, save
from robustcli.report.tables import DIRECTIONS, MISSING, Grid, directions_of, label_of

if TYPE_CHECKING:
    import pandas as pd

ACCESS = {
    "static": "static",
    "transfer": "transfer",
    "bpda": "BPDA",
    "shortened": "shorter",
    "adaptive": "adaptive",
    WORST: "worst",
}
_VERDICTS = {"recall_at_1": "one fresh answer", "majority": "most of them", "worst": "all of them"}
_NOTICED = 0.01  # accuracy; below it a difference may be chance among fresh answers
NO_ADAPTIVE = (
    "THE ADAPTIVE COLUMN IS MISSING: nothing here says what an attacker can do who knows of the defence. Run with "
    "'evaluation.access=[static,bpda,adaptive]' before any of it is called robust."
)


@dataclass(frozen=True)
class Strip:
    """One image at the stages of an attack and a defence; images (C,H,W) in [0,1].

    Attributes:
        label: the true class.
        pictures: heading -> image and predicted class.
    """

    label: str
    pictures: Mapping[str, tuple[Any, str]]


def access_grid(table: "pd.DataFrame", eps: float, *, norm: str) -> Grid:
    """Accuracy at one radius: models as rows; clean, the attacks by access, and the worst of each access as columns.

    Args:
        table: of `summarise`, at several radii.
        eps, norm: the radius that is shown.
    """
    shown_rows = table[table["eps"].isna() | (table["eps"] == eps)]
    columns, directions = _columns(shown_rows), directions_of(table)
    rows = [
        [str(model), *(_cells(shown_rows, model, access, attack, "recall_at_1") for access, attack in columns)]
        for model in dict.fromkeys(shown_rows["model"])
    ]
    named = "Accuracy" if directions == ["image_to_class"] else "Recall@1"
    ways = "" if directions == ["image_to_class"] else f", {' / '.join(DIRECTIONS[each] for each in directions)}"
    title = f"{named} in percent{ways}, changes up to {NORMS[norm]} {shown(eps, norm)}, judged on fresh draws"
    note = (
        "static: found on the bare model; BPDA: the cleaner's gradient taken for the identity; shorter: through a "
        "cleaner of fewer steps; adaptive: through the defence, averaged over draws; worst: for each query what hurts "
        "most, smallest changes followed on to the radius among it. ± reaches to the farther end of the 95 % interval."
    )
    return Grid(title, ["model", *(_heading(access, attack) for access, attack in columns)], rows, note)


def strict_grid(table: "pd.DataFrame", radii: Sequence[float], *, norm: str) -> Grid:
    """Accuracy under the worst of all attacks, over the radii, if one, most or all fresh answers must be correct."""
    worst = table[(table["attack"] == WORST) & (table["access"] == WORST)]
    rows = []
    for model in dict.fromkeys(table["model"]):
        for verdict, words in _VERDICTS.items():
            clean = _cells(table, model, CLEAN, CLEAN, verdict)
            at = [_cells(worst[worst["eps"] == eps], model, WORST, WORST, verdict) for eps in radii]
            if verdict == "recall_at_1" or clean != MISSING:
                rows.append([str(model), words, clean, *at])
    title = "In percent under the worst attack of each query, by how fresh answers are counted"
    return Grid(title, ["model", "right if", "no attack", *(shown(eps, norm) for eps in radii)], rows)


def paper_grid(table: "pd.DataFrame", radii: Sequence[float], *, norm: str) -> Grid:
    """Robust accuracy as the paper counts it: by the answers that the adaptive attack itself saw; models and attacks as
    rows, radii as columns.
    """
    rows = []
    for (model, attack), part in table.groupby(["model", "attack"], sort=False):
        by_radius = {row["eps"]: _cell(row, "accuracy") for row in part.to_dict("records")}
        median = float(part["median_norm"].iloc[0])
        far = f"{median:.3g}" if np.isfinite(median) else "not broken"
        rows.append([str(model), label_of(str(attack)), far, *(by_radius[eps] for eps in radii)])
    title = (
        "By the paper's protocol: share of images in percent that the adaptive attack did not claim within the radius"
    )
    note = "It rests on the few answers that the attack itself saw; the tables above judge on fresh ones."
    return Grid(title, ["model", "attack", "median norm", *(shown(eps, norm) for eps in radii)], rows, note)


def resubmission_grid(table: "pd.DataFrame", eps: float, *, norm: str) -> Grid:
    """Accuracy at one radius if the same image may be handed in several times: models as rows, numbers as columns.

    Args:
        table: of `resubmitted`.
    """
    times = list(dict.fromkeys(table["times"]))
    rows = []
    for model, part in table.groupby("model", sort=False):
        cells = {row["times"]: _cell(row, "right") for row in part.to_dict("records")}
        rows.append([str(model), *(cells[each] for each in times)])
    title = (
        f"In percent within {NORMS[norm]} {shown(eps, norm)}, where the attacker hands the same image in so many times"
    )
    note = (
        "An image counts as right if all of so many fresh answers are. It is the one that left the fewest of them "
        "right, chosen after they were drawn."
    )
    return Grid(title, ["model", *(str(each) for each in times)], rows, note)


def certified_grid(tables: Mapping[str, "pd.DataFrame"], radii: Sequence[float], *, sigma: float, alpha: float) -> Grid:
    """Certified accuracy over the L2 radii: models as rows.

    Args:
        tables: of `Smoothing.certify`, by the label of the model.
    """
    rows = []
    for label, table in tables.items():
        proven = [f"{100 * certified_accuracy(table, eps):.1f}" for eps in radii]
        abstained = f"{100 * (table['predicted'] == ABSTAINED).mean():.1f}"
        rows.append([label, f"{100 * table['correct'].mean():.1f}", *proven, abstained])
    title = f"Proven in percent within an L2 norm, the vote under noise of {sigma:g} (randomised smoothing)"
    note = (
        f"No attack within the radius changes the vote, with a confidence of {100 * (1 - alpha):g} % for each image. "
        "The radius is that of the vote under noise: it says nothing of the model without. abstained: no class has "
        "half of the votes for sure."
    )
    return Grid(title, ["model", "right", *(shown(eps, "l2") for eps in radii), "abstained"], rows, note)


def masking_warnings(table: "pd.DataFrame", radii: Sequence[float], *, norm: str) -> list[str]:
    """One warning for each defence on which static or BPDA attacks succeed more often than adaptive ones.

    That is a sign of gradient masking, or of adaptive attacks that are too weak.
    """
    worst = table[table["attack"] == WORST]
    left = worst.groupby(["model", "access", "eps"])["recall_at_1"].mean()
    bare = set(table.loc[table["defence"] == BARE, "model"])
    sentences = []
    for model in dict.fromkeys(worst["model"]):
        for eps in radii:
            by_access = {
                access: left.get((model, access, eps)) for access in ("static", "bpda", "shortened", "adaptive")
            }
            adaptive = by_access.pop("adaptive")
            weaker = {access: value for access, value in by_access.items() if value is not None}
            if adaptive is None or not weaker or model in bare:
                continue
            access = min(weaker, key=lambda name: weaker[name])
            if weaker[access] < adaptive - _NOTICED:
                sentences.append(
                    f"SUSPECT: {ACCESS[access]} attacks within {NORMS[norm]} {shown(eps, norm)} leave "
                    f"{100 * weaker[access]:.1f} % to {model}, adaptive ones {100 * adaptive:.1f} %: these are too "
                    "weak, or its gradients mislead. Go by the worst of all, and attack it with more steps and answers "
                    "(evaluation.eot)."
                )
                break
    return sentences


def accuracy_over_radius(table: "pd.DataFrame", path: Path, *, norm: str) -> None:
    """Accuracy over the radius for every model in one picture: solid under the worst of all attacks that were run,
    dashed under the worst static one.
    """
    worst, bare = table[table["attack"] == WORST], set(table.loc[table["defence"] == BARE, "model"])
    shown = worst.groupby(["model", "access", "eps"], sort=False).mean(numeric_only=True).reset_index()
    clean = table[table["access"] == CLEAN].groupby("model", sort=False)["recall_at_1"].mean()
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, model in enumerate(dict.fromkeys(shown["model"])):
        for access, dashes in ((WORST, "-"), ("static", "--")):
            points = shown[(shown["model"] == model) & (shown["access"] == access)].sort_values("eps")
            if points.empty or (access == "static" and model in bare):
                continue
            x, y = [0.0, *points["eps"]], [clean[model], *points["recall_at_1"]]
            colour = COLOURS[index % len(COLOURS)]
            name = str(model) if access == WORST else f"{model}, static attack"
            axes.plot(x, 100 * np.array(y), dashes, color=colour, marker=MARKERS[index % len(MARKERS)], label=name)
            if access == WORST:
                low, high = points["recall_at_1_low"].astype(float), points["recall_at_1_high"].astype(float)
                axes.fill_between(points["eps"], 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(f"largest change ({NORMS[norm]} norm, pixels in [0, 1])", color=INK)
    axes.set_ylabel("right answers (%)", color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, axes, loc="outside right upper", fontsize=8)
    save(figure, path, drawing=True)


def strips(rows: Sequence[Strip], path: Path, *, title: str) -> None:
    """Grid of images, a row a `Strip` and a column a stage, with the predicted class below each; wrong ones in colour.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a picture of strips needs at least one row")
    names = list(rows[0].pictures)
    figure = Figure(figsize=(1.0 + 1.45 * len(names), 0.6 + 1.75 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (axes_row, row) in enumerate(zip(grid, rows, strict=True)):
        for axes, name in zip(axes_row, names, strict=True):
            image, says = row.pictures[name]
            _show(axes, image)
            axes.set_xlabel(says, fontsize=8, color=INK if says in ("", row.label) else COLOURS[1])
            if line == 0:
                axes.set_title(name, fontsize=8.5, color=INK)
        axes_row[0].set_ylabel(row.label, fontsize=8.5, color=INK)
    figure.suptitle(title, fontsize=10, color=INK)
    save(figure, path)


def _show(axes: Any, image: Any) -> None:
    values = np.clip(np.asarray(image, dtype=np.float64).transpose(1, 2, 0), 0, 1)
    axes.imshow(
        values if values.shape[2] == 3 else values[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _columns(table: "pd.DataFrame") -> list[tuple[str, str]]:
    """(access, attack) in the order of the table; of BPDA and shorter chains the worst alone, against masking."""
    columns = [(CLEAN, CLEAN)]
    for access in ("static", "transfer", "bpda", "shortened", "adaptive"):
        attacks = list(dict.fromkeys(table[table["access"] == access]["attack"]))
        columns += [(access, attack) for attack in attacks if access not in ("bpda", "shortened") or attack == WORST]
    return [*columns, (WORST, WORST)]


def _heading(access: str, attack: str) -> str:
    if access == CLEAN:
        return "no attack"
    if access == WORST:
        return "worst of all"
    return f"{ACCESS[access]}\n{'worst' if attack == WORST else label_of(attack)}"


def _cells(table: "pd.DataFrame", model: Any, access: str, attack: str, measure: str) -> str:
    """One figure a direction; `MISSING` where there is none."""
    if measure not in table:
        return MISSING
    rows = table[(table["model"] == model) & (table["access"] == access) & (table["attack"] == attack)]
    rows = rows[rows[measure].notna()]
    if rows.empty:
        return MISSING
    cells = [_cell(row, measure).split("\n") for row in rows.to_dict("records")]
    return "\n".join(" / ".join(parts) for parts in zip(*cells, strict=False))


def _cell(row: Mapping[Any, Any], measure: str) -> str:
    value, low, high = row[measure], row[f"{measure}_low"], row[f"{measure}_high"]
    if low is None or low != low:  # NaN
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f}\n±{100 * max(value - low, high - value):.1f}"
