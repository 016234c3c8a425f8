"""Aggregation of records into tables: recall and success rates, the worst case of each query, accuracy at a radius.

Shares are in [0,1]; intervals are 95 %, by a bootstrap over images.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.evaluation.records import BARE, CLEAN, VERDICTS, WORST, clean_of, success_rates, within

KS = (1, 5, 10)
_KEYS = ["model", "defence", "attack", "access", "eps", "direction"]
_QUERY = ["model", "direction", "query_id"]


def at_radius(records: pd.DataFrame, eps: float | None) -> pd.DataFrame:
    """The records of a table at the radius ``eps`` (None: any change), with those without attack.

    An attack that was run at this very radius stands as it is; one that looked for the smallest change is cut off
    there.
    """
    clean, attacked = _split(records)
    attacked = attacked[~_followed(attacked)]
    if eps is None:
        return pd.concat([clean, attacked], ignore_index=True)
    exact = attacked[attacked["eps"] == eps]
    smallest = attacked[attacked["eps"].isna()]
    cut = [within(smallest, clean, eps).assign(eps=eps)] if len(smallest) else []
    return pd.concat([clean, exact, *cut], ignore_index=True)


def up_to_radius(records: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The records of a table of defences at the radius ``eps``, where what misleads within a smaller one counts too.

    Each query stands once for every attack, access and model, as it is where that leaves the fewest fresh answers
    right; of an access, and over all of them, the attack `WORST` is the worst case, in which also the smallest changes
    count that were followed on to the radius. It is chosen after the fact, so its figure is a little low where answers
    are drawn; a robust figure may err on that side. To a model without a defence, static and adaptive is one.
    """
    clean, attacked = _split(records)
    attacked = attacked[attacked["eps"].isna() | (attacked["eps"] <= eps * (1 + 1e-9))]
    bare = attacked[(attacked["defence"] == BARE) & (attacked["access"] == "static")]
    attacked = pd.concat([attacked, bare.assign(access="adaptive")], ignore_index=True)
    attacked = within(attacked, clean, eps).assign(eps=eps)
    parts = [_least(attacked[~_followed(attacked)], ["attack", "access"])]
    parts.append(_least(attacked, ["access"]).assign(attack=WORST))
    parts.append(_least(attacked, []).assign(attack=WORST, access=WORST))
    return pd.concat(parts, ignore_index=True)


def with_worst(records: pd.DataFrame) -> pd.DataFrame:
    """The records with rows of an attack `WORST`: each query's row of the attack that hurts it most.

    That is what an attacker has who may choose for each query; with one attack there is nothing to choose.
    """
    attacked = records[records["adversarial_rank"].notna()]
    if attacked["attack"].nunique() < 2:
        return records
    return pd.concat([records, _least(attacked, []).assign(attack=WORST)], ignore_index=True)


def summarise(records: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a model, defence, attack, access, radius and direction, each column an aggregation of ``records``.

    ``recall_at_k`` (for k = 1 the chance that a fresh answer is right), and of a model that draws also ``worst`` and
    ``majority``, each with ``_low`` and ``_high``; both success rates; what an image cost, and the median norm of what
    misled.
    """
    rows = []
    for keys, table in records.groupby(_KEYS, sort=False, dropna=False):
        rows.append({**dict(zip(_KEYS, keys, strict=True)), **_figures(table, resamples, seed)})
    return pd.DataFrame(rows)


def claimed_norms(records: pd.DataFrame) -> pd.DataFrame:
    """As the purification paper counts: for each model, attack that looks for the smallest change and image the
    ``norm`` of what the adaptive attack itself took for a success; 0 where the clean image is wrong already, infinite
    where it found none.
    """
    clean, attacked = _split(records)
    found = attacked[attacked["eps"].isna() & ~_followed(attacked)]
    own = ((found["defence"] == BARE) & (found["access"] == "static")) | (found["access"] == "adaptive")
    found = found[own]
    right = clean_of(found, clean)["majority"].to_numpy(dtype=bool)
    # An attack that finds nothing gives the image back as it was, and on a model that draws that is no success.
    norms = found["norm"].where(found["norm"] > 0, float("inf")).where(right, 0.0)
    return found[["model", "attack", "access", "image_id"]].assign(norm=norms)


def paper_table(records: pd.DataFrame, radii: Sequence[float], *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a model, attack and radius: ``accuracy``, the share of images whose norm is above the radius, with its
    interval; and the ``median_norm`` of an attack (Serez et al. 2025).
    """
    norms, rows = claimed_norms(records), []
    for (model, attack), part in norms.groupby(["model", "attack"], sort=False):
        for eps in radii:
            figures = _interval("accuracy", (part["norm"] > eps).astype(float), part["image_id"], resamples, seed)
            median = float(part["norm"].median())
            rows.append({"model": model, "attack": attack, "eps": eps, **figures, "median_norm": median})
    return pd.DataFrame(rows)


def robust_recall(table: pd.DataFrame, label: str) -> float:
    """Recall@1 of model ``label`` under its worst attack, mean of all directions; clean where nothing attacked."""
    return float(_mean_recall(table, label).min())


def worst_attack(table: pd.DataFrame, label: str) -> str | None:
    """Name of the attack that leaves ``label`` the least recall@1 (mean of all directions); None without attacks."""
    attacked = _mean_recall(table[~table["attack"].isin([CLEAN, WORST])], label)
    return None if attacked.empty else str(attacked[::-1].idxmin())  # of equals the later one, which is the stronger


def _split(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those without attack, and the others."""
    clean = records["access"] == CLEAN
    return records[clean], records[~clean]


def _followed(records: pd.DataFrame) -> "pd.Series[bool]":
    if "followed" not in records:
        return pd.Series(False, index=records.index)
    return records["followed"].fillna(False).astype(bool)


def _least(attacked: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The row of each query that hurts it most, for each of ``keys``; each verdict is the least of all rows."""
    by = [*_QUERY, *keys]
    worst = attacked.assign(_order=(1 - attacked["mean"].astype(float)) * 1e12 + attacked["adversarial_rank"])
    groups = worst.groupby(by, sort=False)
    chosen = worst.loc[groups["_order"].idxmax()].drop(columns="_order").set_index(by)
    least = groups[list(VERDICTS)].min()
    chosen[list(VERDICTS)] = least.loc[chosen.index]
    return chosen.reset_index()


def _mean_recall(table: pd.DataFrame, label: str) -> "pd.Series[float]":
    return table[table["model"] == label].groupby("attack", sort=False)["recall_at_1"].mean()


def _figures(table: pd.DataFrame, resamples: int, seed: int) -> Mapping[str, float | int | None]:
    judged = table["adversarial_rank"].fillna(table["clean_rank"]).to_numpy(dtype="int64")
    ranks, groups = torch.from_numpy(judged), torch.from_numpy(pd.factorize(table["image_id"])[0])
    figures: dict[str, float | int | None] = {"queries": len(table)}
    for k in KS:
        hits = torch.tensor(table["mean"].to_numpy(dtype="float64")) if k == 1 else ranks <= k
        figures |= _named(f"recall_at_{k}", metrics.bootstrap(hits, groups, resamples=resamples, seed=seed))
    if (table["draws"] > 1).any():
        for verdict in ("worst", "majority"):
            figures |= _interval(verdict, table[verdict].astype(float), table["image_id"], resamples, seed)
    if table["adversarial_rank"].notna().any():
        figures |= success_rates(table) | _flip_interval(table, groups, resamples, seed) | _cost(table)
    return figures


def _cost(table: pd.DataFrame) -> dict[str, float]:
    """Mean forward and backward passes an image, and the median norm of what misled."""
    figures = {
        f"{name}_mean": float(table[name].mean())
        for name in ("queries", "gradients")
        if name in table and table[name].notna().any()
    }
    fooled = table[table["status"] == "fooled"]
    if "norm" in table and fooled["norm"].notna().any():
        figures["norm_median"] = float(fooled["norm"].median())
    return figures


def _flip_interval(table: pd.DataFrame, groups: Tensor, resamples: int, seed: int) -> dict[str, float | None]:
    right = torch.from_numpy(table["clean_correct"].to_numpy(dtype=bool))
    lost = right & ~torch.from_numpy(table["adversarial_correct"].to_numpy(dtype=bool))
    interval = metrics.bootstrap_ratio(lost, right, groups, resamples=resamples, seed=seed)
    return {"success_flip_low": interval.low, "success_flip_high": interval.high}


def _interval(
    name: str, values: "pd.Series[float]", images: "pd.Series[str]", resamples: int, seed: int
) -> dict[str, float | None]:
    groups = torch.from_numpy(pd.factorize(images)[0])
    sample = torch.tensor(values.to_numpy(dtype="float64"))
    return _named(name, metrics.bootstrap(sample, groups, resamples=resamples, seed=seed))


def _named(name: str, found: metrics.Interval) -> dict[str, float | None]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
