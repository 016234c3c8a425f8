"""Robust accuracy at every bound, by attack, counted over all images and over those that were right at first.

Shares are in [0,1]; intervals are 95 %, by a bootstrap over images.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from robustcli.evaluation.aggregate import claimed_norms, up_to_radius
from robustcli.evaluation.records import CLEAN, WORST
from robustcli.metrics import bootstrap

ALL, RIGHT = "all images", "right at first"
COUNTED = (ALL, RIGHT)
_ROW = ["model", "defence", "attack", "direction"]
_IMAGE = ["model", "direction", "query_id"]


def robust_table(
    records: pd.DataFrame, radii: Sequence[float], *, claimed: bool = False, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row a model, attack, bound, direction and way of counting: ``accuracy`` with ``_low`` and ``_high``.

    Rows of `CLEAN` have no bound; those of attacks are of such as knew the defence, and `WORST` is the worst case of
    each image over attacks of every access. No row where no image was right at first.

    Args:
        records: of an evaluation of defences.
        radii: the bounds.
        claimed: count as Serez et al. 2025 do: an image is robust at a bound if no adaptive minimum-norm attack claimed
            a smaller change, by the answers that it saw itself; else the share of fresh answers that are right, of the
            worst change that an attack found within the bound.
        resamples, seed: of the bootstrap.
    """
    clean = records[records["access"] == CLEAN]
    parts = [clean.assign(eps=float("nan"), value=clean["mean"].astype(float))]
    if claimed:
        norms = claimed_norms(records).merge(clean[[*_IMAGE, "defence", "image_id"]], on=["model", "image_id"])
        least = norms.groupby(["defence", *_IMAGE, "image_id"], sort=False)["norm"].min().reset_index()
        norms = pd.concat([norms, least.assign(attack=WORST)], ignore_index=True)
        parts += [norms.assign(eps=eps, value=(norms["norm"] > eps).astype(float)) for eps in radii]
    else:
        for eps in radii:
            found = up_to_radius(records, eps)
            found = found[(found["access"] == "adaptive") & (found["attack"] != WORST) | (found["access"] == WORST)]
            parts.append(found.assign(value=found["mean"].astype(float)))
    together = pd.concat([part[[*_ROW, "query_id", "image_id", "eps", "value"]] for part in parts], ignore_index=True)
    right = clean.set_index(_IMAGE)["majority"].astype(bool)
    together["right"] = right.reindex(pd.MultiIndex.from_frame(together[_IMAGE])).to_numpy()
    rows = []
    for keys, part in together.groupby([*_ROW, "eps"], sort=False, dropna=False):
        for counted in COUNTED:
            shown = part if counted == ALL else part[part["right"]]
            if shown.empty:
                continue
            groups = torch.from_numpy(pd.factorize(shown["image_id"])[0])
            values = torch.tensor(shown["value"].to_numpy(dtype="float64"))
            interval = bootstrap(values, groups, resamples=resamples, seed=seed)
            figures = {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high}
            rows.append({**dict(zip([*_ROW, "eps"], keys, strict=True)), "counted": counted, **figures})
    return pd.DataFrame(rows)
