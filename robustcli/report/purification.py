"""What a person sees of a purification run: tables of who knows what, accuracy over the bound, strips and sweeps.

Shapes: C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from robustcli.evaluation.bounds import WORST
from robustcli.evaluation.purification import BARE
from robustcli.report.figures import COLOURS, FAINT, INK, MARKERS, save
from robustcli.report.tables import ATTACKS, MISSING, Grid

if TYPE_CHECKING:
    import pandas as pd

SHOWN = {"static": "static", "bpda": "BPDA", "adaptive": "adaptive", WORST: "worst"}
_VERDICTS = {"mean": "one fresh answer", "majority": "most of them", "worst": "all of them"}
_NOTICED = 0.01  # of accuracy; chance among fresh answers makes less
NO_ADAPTIVE = (
    "THE ADAPTIVE COLUMN IS MISSING: nothing here says what an attacker can do who knows of the defence. Run with "
    "'protocol.access=[static,bpda,adaptive]' before any of it is called robust."
)


@dataclass(frozen=True)
class Strip:
    """One image before and after; images (C,H,W) in [0,1].

    Attributes:
        label: the true class.
        pictures: heading -> image and what the classifier says of it.
    """

    label: str
    pictures: Mapping[str, tuple[Any, str]]


def access_grid(table: "pd.DataFrame", bound: float, *, norm: str) -> Grid:
    """Defences as rows; clean, then each attack by what the attacker knew, and the worst of each access."""
    shown = table[(table["verdict"] == "mean") & (table["bound"].isna() | (table["bound"] == bound))]
    cells = {(row["model"], row["access"], row["attack"]): _cell(row) for row in shown.to_dict("records")}
    columns = _columns(shown)
    headings = ["defence", *(_heading(access, attack) for access, attack in columns)]
    rows = [
        [str(model), *(cells.get((model, access, attack), MISSING) for access, attack in columns)]
        for model in dict.fromkeys(shown["model"])
    ]
    title = f"Accuracy in percent, changes up to {norm} {bound:g}, judged on fresh draws"
    note = (
        "static: found on the bare classifier; BPDA: the cleaner's gradient taken for the identity; adaptive: through "
        "the defence, averaged over draws; worst: for each image what hurts most, smallest changes followed on to the "
        "bound among it. "
        "± reaches to the farther end of the 95 % interval."
    )
    return Grid(title, headings, rows, note)


def strict_grid(table: "pd.DataFrame", bounds: Sequence[float]) -> Grid:
    """Defences as rows, under the worst of all attacks: the chance of one fresh answer, of most and of all."""
    shown = table[(table["attack"] == WORST) & (table["access"] == WORST)]
    clean = table[table["access"] == "clean"]
    rows = []
    for model in dict.fromkeys(table["model"]):
        for verdict, words in _VERDICTS.items():
            row = [str(model), words, _value(clean, model, verdict, None)]
            rows.append([*row, *(_value(shown, model, verdict, bound) for bound in bounds)])
    title = "Accuracy in percent under the worst attack of each image, by how fresh answers are counted"
    return Grid(title, ["defence", "right if", "no attack", *(f"{bound:g}" for bound in bounds)], rows)


def paper_grid(table: "pd.DataFrame", bounds: Sequence[float]) -> Grid:
    """Defences and attacks as rows: as the paper counts, by what the adaptive attack itself saw."""
    rows = []
    for (model, attack), part in table.groupby(["model", "attack"], sort=False):
        by_bound = {row["bound"]: _cell(row) for row in part.to_dict("records")}
        median = float(part["median_norm"].iloc[0])
        far = f"{median:.3g}" if np.isfinite(median) else "not broken"
        rows.append([str(model), ATTACKS.get(str(attack), str(attack)), far, *(by_bound[bound] for bound in bounds)])
    title = (
        "By the paper's protocol: share of images in percent that the adaptive attack did not claim within the bound"
    )
    note = "It rests on the few answers that the attack itself saw; the tables above judge on fresh ones."
    return Grid(title, ["defence", "attack", "median norm", *(f"{bound:g}" for bound in bounds)], rows, note)


def masked(table: "pd.DataFrame", bounds: Sequence[float], *, norm: str) -> list[str]:
    """A sentence for each defence that attackers who know less hurt more than the adaptive ones do: its gradients
    mislead, or its adaptive attacks are too weak.
    """
    worst = table[(table["verdict"] == "mean") & (table["attack"] == WORST)]
    left = worst.set_index(["model", "access", "bound"])["accuracy"]
    sentences = []
    for model in dict.fromkeys(worst["model"]):
        for bound in bounds:
            by_access = {access: left.get((model, access, bound)) for access in ("static", "bpda", "adaptive")}
            adaptive = by_access.pop("adaptive")
            known = {access: value for access, value in by_access.items() if value is not None}
            if adaptive is None or not known or model == BARE:
                continue
            access = min(known, key=lambda name: known[name])
            if known[access] < adaptive - _NOTICED:
                sentences.append(
                    f"SUSPECT: {SHOWN[access]} attacks within {norm} {bound:g} leave {100 * known[access]:.1f} % to "
                    f"{model}, adaptive ones {100 * adaptive:.1f} %: these are too weak, or its gradients mislead. Go "
                    "by the worst of all, and attack it with more steps and answers (protocol.eot)."
                )
                break
    return sentences


def accuracy_over_bound(table: "pd.DataFrame", path: Path, *, norm: str) -> None:
    """Accuracy over the bound for every defence in one picture: solid under the worst of all attacks that were run,
    dashed under the worst static one.
    """
    shown = table[(table["verdict"] == "mean") & (table["attack"] == WORST)]
    clean = table[(table["verdict"] == "mean") & (table["access"] == "clean")].set_index("model")["accuracy"]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, model in enumerate(dict.fromkeys(shown["model"])):
        for access, dashes in ((WORST, "-"), ("static", "--")):
            points = shown[(shown["model"] == model) & (shown["access"] == access)].sort_values("bound")
            if points.empty or (model == BARE and access == "static"):
                continue
            x, y = [0.0, *points["bound"]], [clean[model], *points["accuracy"]]
            colour = COLOURS[index % len(COLOURS)]
            name = str(model) if access == WORST else f"{model}, static attack"
            axes.plot(x, 100 * np.array(y), dashes, color=colour, marker=MARKERS[index % len(MARKERS)], label=name)
            if access == WORST:
                low, high = points["accuracy_low"].astype(float), points["accuracy_high"].astype(float)
                axes.fill_between(points["bound"], 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(f"bound of the change ({norm} norm, pixels in [0, 1])", color=INK)
    axes.set_ylabel("accuracy (%)", color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save(figure, path)


def strips(rows: Sequence[Strip], path: Path, *, title: str) -> None:
    """A row an image, a column a stage, with what the classifier says below each picture."""
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
    """(access, attack) in the order of the table."""
    columns = [("clean", "clean")]
    for access in ("static", "bpda", "adaptive"):
        attacks = list(dict.fromkeys(table[table["access"] == access]["attack"]))
        columns += [(access, attack) for attack in attacks if access != "bpda" or attack == WORST]
    return [*columns, (WORST, WORST)]


def _heading(access: str, attack: str) -> str:
    if access == "clean":
        return "no attack"
    if access == WORST:
        return "worst of all"
    return f"{SHOWN[access]}\n{'worst' if attack == WORST else ATTACKS.get(attack, attack)}"


def _value(table: "pd.DataFrame", model: Any, verdict: str, bound: float | None) -> str:
    own = table[(table["model"] == model) & (table["verdict"] == verdict)]
    own = own[own["bound"].isna()] if bound is None else own[own["bound"] == bound]
    return MISSING if own.empty else _cell(own.iloc[0].to_dict())


def _cell(row: Mapping[Any, Any]) -> str:
    value, low, high = row["accuracy"], row["accuracy_low"], row["accuracy_high"]
    if low is None or low != low:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f}\n±{100 * max(value - low, high - value):.1f}"
