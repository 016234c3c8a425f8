"""From records to figures: every figure of a table is an aggregation of the records."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.evaluation.base import CLEAN

KS = (1, 5, 10)
WORST = "worst"


def summarise(records: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a model, attack and direction: recall with 95 % intervals (bootstrap over images), both success rates.

    Every column is an aggregation of ``records`` (see `Judge.records`); shares in [0,1].
    """
    rows = []
    for (model, attack, direction), table in records.groupby(["model", "attack", "direction"], sort=False):
        rows.append({"model": model, "attack": attack, "direction": direction, **_figures(table, resamples, seed)})
    return pd.DataFrame(rows)


def with_worst(records: pd.DataFrame, *, leave_out: str = "curve-") -> pd.DataFrame:
    """The records with rows of an attack ``worst``: each query's row of the judge that hurts it most.

    That is what an attacker has who may choose for each query; attacks whose names begin with ``leave_out`` do not
    count.
    """
    attacked = records[records["adversarial_rank"].notna() & ~records["attack"].str.startswith(leave_out)]
    if attacked["attack"].nunique() < 2:
        return records
    hardest = attacked.groupby(["model", "direction", "query_id"], sort=False)["adversarial_rank"].idxmax()
    return pd.concat([records, attacked.loc[hardest].assign(attack=WORST)], ignore_index=True)


def robust_recall(table: pd.DataFrame, label: str) -> float:
    """Recall@1 of model ``label`` under its worst judge, mean of all directions; clean where nothing attacked."""
    return float(_mean_recall(table, label).min())


def worst_attack(table: pd.DataFrame, label: str) -> str | None:
    """Name of the judge that leaves ``label`` the least recall@1 (mean of all directions); None without judges."""
    attacked = _mean_recall(table[~table["attack"].isin([CLEAN, WORST])], label)
    return None if attacked.empty else str(attacked[::-1].idxmin())  # of equals the later one, which is the stronger


def _mean_recall(table: pd.DataFrame, label: str) -> "pd.Series[float]":
    return table[table["model"] == label].groupby("attack", sort=False)["recall_at_1"].mean()


def _figures(table: pd.DataFrame, resamples: int, seed: int) -> Mapping[str, float | int | None]:
    judged = table["adversarial_rank"].fillna(table["clean_rank"]).to_numpy(dtype="int64")
    ranks, groups = torch.from_numpy(judged), torch.from_numpy(pd.factorize(table["image_id"])[0])
    figures: dict[str, float | int | None] = {"queries": len(table)}
    for k in KS:
        interval = metrics.bootstrap(ranks <= k, groups, resamples=resamples, seed=seed)
        figures |= {
            f"recall_at_{k}": interval.mean,
            f"recall_at_{k}_low": interval.low,
            f"recall_at_{k}_high": interval.high,
        }
    if table["adversarial_rank"].notna().any():
        figures |= metrics.success_rates(table) | _flip_interval(table, groups, resamples, seed) | _cost(table)
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
