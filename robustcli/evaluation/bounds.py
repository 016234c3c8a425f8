"""From the records of `PurificationJudge` to robust accuracy at a bound of the change, by the paper and strictly.

Shares are in [0,1].
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch

from robustcli import metrics
from robustcli.evaluation.purification import BARE

WORST = "worst"
VERDICTS = ("mean", "worst", "majority")
_SLACK = 1e-6  # of rounding, in units of the bound
_KEYS = ["model", "attack", "access"]


def robust_table(
    records: pd.DataFrame, bounds: Iterable[float], *, resamples: int, seed: int, verdicts: Sequence[str] = VERDICTS
) -> pd.DataFrame:
    """One row a defence, attack, access, bound and verdict: ``accuracy`` with a 95 % interval over images.

    ``mean`` is the chance that a fresh answer is right, ``worst`` that all are, ``majority`` that most are; each has a
    row for every attack, for the attack ``worst`` of each access, and for the access ``worst`` over all of them. An
    image whose change is beyond the bound counts as it does without attack. The row of an attack is what it found; the
    worst also counts smallest changes that were followed on to the bound.
    """
    clean = records[records["access"] == "clean"]
    rows = [
        _row(clean, model, "clean", "clean", None, how, resamples, seed) for model in _models(clean) for how in verdicts
    ]
    for bound in bounds:
        within = at_bound(records, bound)
        for (model, attack, access), part in within.groupby(_KEYS, sort=False):
            names = str(model), str(attack), str(access)
            rows += [_row(part, *names, bound, how, resamples, seed) for how in verdicts]
    return pd.DataFrame(rows)


def at_bound(records: pd.DataFrame, bound: float) -> pd.DataFrame:
    """The records of the attacks at ``bound``, a change beyond it put back to the clean image, and those of ``worst``.

    The worst attack of an image is the one that leaves the fewest fresh answers right. It is chosen after the fact, so
    its figure is a little low where answers are drawn; a robust figure may err on that side.
    """
    attacked = records[(records["access"] != "clean") & (records["bound"].isna() | (records["bound"] <= bound))]
    attacked = _with_bare(attacked)
    beyond = (attacked["norm"] > bound * (1 + _SLACK)).to_numpy()
    left = _clean_of(records, attacked)
    for verdict in VERDICTS:
        attacked[verdict] = attacked[verdict].where(~beyond, left[verdict].to_numpy())
    # What misleads within a smaller bound does so within a larger one.
    found = _least(attacked[~attacked["followed"].astype(bool)], [*_KEYS, "image_id"])
    by_access = _least(attacked, ["model", "access", "image_id"]).assign(attack=WORST)
    of_all = _least(attacked, ["model", "image_id"]).assign(attack=WORST, access=WORST)
    return pd.concat([found, by_access, of_all], ignore_index=True)


def claimed_norms(records: pd.DataFrame) -> pd.DataFrame:
    """As the paper counts: for each defence, minimum-norm attack and image the ``norm`` of what the adaptive attack
    itself took for a success; 0 where the clean image is wrong already, infinite where it found none.
    """
    found = _with_bare(records[records["bound"].isna() & (records["access"] != "clean")])
    found = found[found["access"] == "adaptive"]
    right = _clean_of(records, found)["majority"].to_numpy(dtype=bool)
    # An attack that finds nothing gives the image back as it was, and on a model that draws that is no success.
    norms = found["norm"].where(found["norm"] > 0, float("inf")).where(right, 0.0)
    return found[[*_KEYS, "image_id"]].assign(norm=norms)


def paper_table(records: pd.DataFrame, bounds: Sequence[float], *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a defence, attack and bound: ``accuracy``, the share of images whose norm is above the bound, with its
    interval; and the ``median_norm`` of an attack.
    """
    norms, rows = claimed_norms(records), []
    for (model, attack), part in norms.groupby(["model", "attack"], sort=False):
        for bound in bounds:
            figures = _interval((part["norm"] > bound).astype(float), part["image_id"], resamples, seed)
            rows.append({"model": model, "attack": attack, "bound": bound, **figures})
            rows[-1]["median_norm"] = float(part["norm"].median())
    return pd.DataFrame(rows)


def _clean_of(records: pd.DataFrame, attacked: pd.DataFrame) -> pd.DataFrame:
    """For each row of ``attacked`` the record of its image without attack."""
    keys = ["model", "image_id"]
    clean = records[records["access"] == "clean"].set_index(keys)
    return clean.reindex(pd.MultiIndex.from_frame(attacked[keys]))


def _with_bare(attacked: pd.DataFrame) -> pd.DataFrame:
    """To the bare classifier, static and adaptive is one."""
    bare = attacked[attacked["model"] == BARE]
    return pd.concat([attacked, bare.assign(access="adaptive")], ignore_index=True)


def _least(attacked: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """What is left where it hurts most, in each group of ``keys``."""
    return attacked.groupby(keys, sort=False)[list(VERDICTS)].min().reset_index()


def _models(clean: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(clean["model"]))


def _row(
    part: pd.DataFrame,
    model: str,
    attack: str,
    access: str,
    bound: float | None,
    how: str,
    resamples: int,
    seed: int,
) -> Mapping[str, object]:
    own = part[part["model"] == model]
    figures = _interval(own[how], own["image_id"], resamples, seed)
    return {"model": model, "attack": attack, "access": access, "bound": bound, "verdict": how, **figures}


def _interval(
    values: "pd.Series[float]", images: "pd.Series[str]", resamples: int, seed: int
) -> dict[str, float | None]:
    groups = torch.from_numpy(pd.factorize(images)[0])
    found = metrics.bootstrap(torch.tensor(values.to_numpy(dtype="float64")), groups, resamples=resamples, seed=seed)
    return {"accuracy": found.mean, "accuracy_low": found.low, "accuracy_high": found.high}
