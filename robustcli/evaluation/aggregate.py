"""Aggregation of records into tables: recall and success rates, the worst case of each query, accuracy at a radius.

Shares are in [0,1]; intervals are 95 %, by a bootstrap over images.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.evaluation.records import BARE, CLEAN, PRECISIONS, WORST, clean_of, success_rates, verdicts_of, within

KS = (1, 5, 10)
_TIMES = (1, 2, 3, 5, 10)  # that an attacker hands in the same image
_KEYS = ["model", "defence", "attack", "access", "eps", "direction"]
_QUERY = ["model", "direction", "query_id"]


def at_radius(records: pd.DataFrame, eps: float | None) -> pd.DataFrame:
    """Records of a table at the radius ``eps`` (None: without bound), with the clean ones.

    Runs at this very radius stay as they are; those of a minimum-norm attack without radius are cut off there.
    """
    clean, attacked = _split(records)
    attacked = attacked[~_followed(attacked)]
    if eps is None:
        return pd.concat([clean, attacked], ignore_index=True)
    exact = attacked[attacked["eps"] == eps]
    unbounded = attacked[attacked["eps"].isna()]
    cut = [within(unbounded, clean, eps).assign(eps=eps)] if len(unbounded) else []
    return pd.concat([clean, exact, *cut], ignore_index=True)


def up_to_radius(records: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Records of a table of defences at the radius ``eps``; success within a smaller radius counts too.

    Each query has one row for every attack, access and model, that of the radius which leaves the fewest fresh draws
    correct. The attack `WORST` is the worst case of each access and over all of them, in which minimum-norm
    perturbations that were scaled up to the radius count as well. It is chosen after the draws, so that its figure is
    biased downwards for a randomised model, the safe side of a robust figure. For a model without a defence static and
    adaptive access are the same.
    """
    clean, attacked = _split(records)
    attacked = attacked[attacked["eps"].isna() | (attacked["eps"] <= eps * (1 + 1e-9))]
    bare = attacked[(attacked["defence"] == BARE) & (attacked["access"] == "static")]
    attacked = pd.concat([attacked, bare.assign(access="adaptive")], ignore_index=True)
    attacked = within(attacked, clean, eps).assign(eps=eps)
    parts = [_worst_case(attacked[~_followed(attacked)], ["attack", "access"])]
    parts.append(_worst_case(attacked, ["access"]).assign(attack=WORST))
    parts.append(_worst_case(attacked, []).assign(attack=WORST, access=WORST))
    return pd.concat(parts, ignore_index=True)


def with_worst(records: pd.DataFrame) -> pd.DataFrame:
    """Records with rows of an attack `WORST`, the worst case of each query over all attacks; as they are of one attack.

    It is the attacker who picks the best attack for each query.
    """
    attacked = records[records["adversarial_rank"].notna()]
    if attacked["attack"].nunique() < 2:
        return records
    return pd.concat([records, _worst_case(attacked, []).assign(attack=WORST)], ignore_index=True)


def fallen_by_attack(records: pd.DataFrame) -> pd.DataFrame:
    """One row a model, attack and direction of several attacks: queries that were correct when clean and ``fallen``
    under it, and those of them that fell ``alone``, under no other attack. No rows for fewer than two attacks.

    Args:
        records: at one radius, without `WORST`.
    """
    attacked = records[records["adversarial_rank"].notna()]
    if attacked["attack"].nunique() < 2:
        return pd.DataFrame(columns=["model", "attack", "direction", "fallen", "alone"])
    fallen = _fallen(attacked)
    attacks = fallen.groupby([attacked[key] for key in _QUERY]).transform("sum")
    counted = attacked.assign(fallen=fallen, alone=fallen & (attacks == 1))
    return counted.groupby(["model", "attack", "direction"], sort=False)[["fallen", "alone"]].sum().reset_index()


def fallen_by_member(records: pd.DataFrame) -> pd.DataFrame:
    """One row a model, attack, ``member`` of that ensemble and direction: queries that were correct when clean and
    ``fallen`` by an image of the member, most first. No rows without an ensemble.

    Args:
        records: at one radius.
    """
    keys = ["model", "attack", "member", "direction"]
    if "member" not in records:
        return pd.DataFrame(columns=[*keys, "fallen"])
    credited = records[records["member"].fillna("") != ""]
    counts = credited.assign(fallen=_fallen(credited)).groupby(keys, sort=False)[["fallen"]].sum().reset_index()
    return counts.sort_values("fallen", ascending=False, kind="stable")


def summarise(records: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a model, defence, attack, access, radius and direction, each column an aggregation of ``records``.

    ``recall_at_k`` (for k = 1 the share of correct fresh draws), of retrieval ``map_at_r`` and ``r_precision``, of a
    randomised model also ``worst`` and ``majority``, each with ``_low`` and ``_high``; both success rates; mean costs
    of an image, and the median norm of the successes.
    """
    rows = []
    for keys, table in records.groupby(_KEYS, sort=False, dropna=False):
        rows.append({**dict(zip(_KEYS, keys, strict=True)), **_figures(table, resamples, seed)})
    return pd.DataFrame(rows)


def claimed_norms(records: pd.DataFrame) -> pd.DataFrame:
    """Norms as Serez et al. 2025 count them: for each model, minimum-norm attack and image the ``norm`` of what the
    adaptive attack itself took for a success; 0 where the clean image is misclassified, infinite without a success.
    """
    clean, attacked = _split(records)
    runs = attacked[attacked["eps"].isna() & ~_followed(attacked)]
    adaptive = ((runs["defence"] == BARE) & (runs["access"] == "static")) | (runs["access"] == "adaptive")
    runs = runs[adaptive]
    correct = clean_of(runs, clean)["majority"].to_numpy(dtype=bool)
    # An attack without success returns the clean image, whose norm of 0 is none on a randomised model.
    norms = runs["norm"].where(runs["norm"] > 0, float("inf")).where(correct, 0.0)
    return runs[["model", "attack", "access", "image_id"]].assign(norm=norms)


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


def resubmitted(records: pd.DataFrame, eps: float, *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a randomised model and number of ``times``: ``right``, the chance that all of so many answers to the
    worst image of each query within ``eps`` are right, with its interval; 1 less it is the chance that one submission
    passes.

    Of R fresh draws of which m are right, every choice of k alike: C(m,k) / C(R,k), unbiased for draws that are alike.
    """
    worst = up_to_radius(records, eps)
    worst = worst[(worst["attack"] == WORST) & (worst["access"] == WORST) & (worst["draws"] > 1)]
    rows = []
    for model, part in worst.groupby("model", sort=False):
        draws = int(part["draws"].max())
        right = (part["mean"].astype(float) * draws).round().astype(int)
        for times in (k for k in _TIMES if k <= draws):
            chance = right.map(lambda m, k=times, n=draws: math.comb(m, k) / math.comb(n, k))
            figures = _interval("right", chance, part["image_id"], resamples, seed)
            rows.append({"model": model, "eps": eps, "times": times, **figures})
    return pd.DataFrame(rows)


def robust_recall(table: pd.DataFrame, label: str) -> float:
    """Recall@1 of model ``label`` under its worst attack, mean of all directions; the clean one without attacks."""
    return float(_mean_recall(table, label).min())


def worst_attack(table: pd.DataFrame, label: str) -> str | None:
    """Name of the attack that leaves ``label`` the least recall@1 (mean of all directions); None without attacks."""
    attacked = _mean_recall(table[~table["attack"].isin([CLEAN, WORST])], label)
    return None if attacked.empty else str(attacked[::-1].idxmin())  # of equals the later one, which is the stronger


def _split(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clean records, and those of attacks."""
    clean = records["access"] == CLEAN
    return records[clean], records[~clean]


def _followed(records: pd.DataFrame) -> "pd.Series[bool]":
    if "followed" not in records:
        return pd.Series(False, index=records.index)
    return records["followed"].fillna(False).astype(bool)


def _worst_case(attacked: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Worst case of each query for each value of ``keys``: the row of the fewest correct draws, and of equals the worst
    rank; each verdict is the least of all rows.
    """
    by = [*_QUERY, *keys]
    worst = attacked.assign(_order=(1 - attacked["mean"].astype(float)) * 1e12 + attacked["adversarial_rank"])
    groups = worst.groupby(by, sort=False)
    chosen = worst.loc[groups["_order"].idxmax()].drop(columns="_order").set_index(by)
    verdicts = verdicts_of(attacked)
    chosen[verdicts] = groups[verdicts].min().loc[chosen.index]
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
    for name in PRECISIONS:
        if name in table and table[name].notna().all():
            figures |= _interval(name, table[name], table["image_id"], resamples, seed)
    if (table["draws"] > 1).any():
        for verdict in ("worst", "majority"):
            figures |= _interval(verdict, table[verdict].astype(float), table["image_id"], resamples, seed)
    if table["adversarial_rank"].notna().any():
        figures |= success_rates(table) | _flip_interval(table, groups, resamples, seed) | _cost(table)
    return figures


def _cost(table: pd.DataFrame) -> dict[str, float]:
    """Mean forward and backward passes an image, and the median norm of the successes."""
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
    correct = torch.from_numpy(table["clean_correct"].to_numpy(dtype=bool))
    fooled = correct & ~torch.from_numpy(table["adversarial_correct"].to_numpy(dtype=bool))
    interval = metrics.bootstrap_ratio(fooled, correct, groups, resamples=resamples, seed=seed)
    return {"success_flip_low": interval.low, "success_flip_high": interval.high}


def _interval(
    name: str, values: "pd.Series[float]", images: "pd.Series[str]", resamples: int, seed: int
) -> dict[str, float | None]:
    groups = torch.from_numpy(pd.factorize(images)[0])
    sample = torch.tensor(values.to_numpy(dtype="float64"))
    return _named(name, metrics.bootstrap(sample, groups, resamples=resamples, seed=seed))


def _named(name: str, interval: metrics.Interval) -> dict[str, float | None]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _fallen(records: pd.DataFrame) -> "pd.Series[bool]":
    return (records["clean_correct"] & ~records["adversarial_correct"]).astype(bool)
