"""Records of an evaluation: one row a query, model, attack, access and radius; every figure is an aggregation of them.

Columns: ``model`` (the row of the table) and ``defence`` (its test-time defence, or ``none``); ``attack``, ``access``
(see `access`) and ``eps`` (radius of the run; null: a minimum-norm attack without radius); ``direction``, ``query_id``,
``image_id``; ``clean_rank`` and ``adversarial_rank``, ``clean_correct`` and ``adversarial_correct`` (rank 1);
``status``; the number of fresh ``draws``, ``mean``, the share of them that is correct, ``worst`` (all are) and
``majority`` (most are); of retrieval the number of ``positives`` and, attacked where there is an attack and as a mean
over draws, ``map_at_r`` and ``r_precision`` (see `metrics.Ranking`); ``norm`` of the perturbation and ``edits`` of the
caption; ``followed`` (a minimum-norm perturbation scaled up to a radius); costs. Classifiers add ``label``,
``clean_class`` and ``adversarial_class``, pairs the edited ``caption``, sentences both. ``member`` is that of an
ensemble that gave the image or the caption, empty of other attacks.

Shapes: Q queries of one direction.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from robustcli.metrics import attack_success_drop, attack_success_flip

Direction = Literal["image_to_text", "text_to_image", "image_to_class", "text_to_class"]

CLEAN = "clean"  # attack and access of a record without attack
WORST = "worst"
BARE = "none"  # defence of a model without one
PRECISIONS = ("map_at_r", "r_precision")  # of retrieval; a classifier has one label and none of them
VERDICTS = ("mean", "worst", "majority")
STATUSES = ("survived", "fooled", "already_wrong", "not_attacked")
SPENT = ("queries", "gradients", "zero_gradients", "nan_gradients")
COSTS = ("norm", *SPENT)  # of an image and its captions
SLACK = 1e-6  # relative; by what a norm in float64 may exceed its radius


def per_query(
    direction: Direction,
    query_ids: Sequence[int | str],
    image_ids: Sequence[int | str],
    clean_rank: Tensor,
    adversarial_rank: Tensor | None = None,
) -> pd.DataFrame:
    """One row a query: direction, query_id, image_id, clean and adversarial rank, True where each is 1, and status.

    Args:
        direction: ``image_to_text``, ``text_to_image``, or ``image_to_class`` for a classifier,
            ``text_to_class`` for sentences.
        query_ids: of the Q queries.
        image_ids: of the image of each query, the cluster of the bootstrap.
        clean_rank: (Q,) long, rank of the best positive, from 1.
        adversarial_rank: the same under the attack; None leaves the columns null and the status ``not_attacked``.

    Raises:
        ValueError: lengths that differ.
    """
    clean = pd.array(clean_rank.cpu().numpy(), dtype="Int64")
    missing = pd.array([pd.NA] * len(clean), dtype="Int64")
    adversarial = missing if adversarial_rank is None else pd.array(adversarial_rank.cpu().numpy(), dtype="Int64")
    lengths = {len(query_ids), len(image_ids), len(clean), len(adversarial)}
    if len(lengths) > 1:
        raise ValueError(f"query_ids, image_ids and ranks must be of one length, got lengths {sorted(lengths)}")
    table = pd.DataFrame(
        {
            "direction": direction,
            "query_id": list(query_ids),
            "image_id": list(image_ids),
            "clean_rank": clean,
            "adversarial_rank": adversarial,
        }
    )
    return with_status(table)


def with_status(table: pd.DataFrame) -> pd.DataFrame:
    """Copy of the table with ``clean_correct``, ``adversarial_correct`` and ``status`` computed from its ranks."""
    table = table.assign(clean_correct=table["clean_rank"] <= 1, adversarial_correct=table["adversarial_rank"] <= 1)
    status = pd.Series("not_attacked", index=table.index)
    attacked = table["adversarial_rank"].notna()
    clean, adversarial = table["clean_correct"].fillna(False), table["adversarial_correct"].fillna(False)
    status[attacked & clean & adversarial] = "survived"
    status[attacked & clean & ~adversarial] = "fooled"
    status[attacked & ~clean] = "already_wrong"
    return table.assign(status=status)


def within(records: pd.DataFrame, clean: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Records at the radius ``eps``: a query whose perturbation is larger, or that has none, gets its clean result.

    Args:
        clean: records without attack of the same models.
    """
    inside = (records["norm"] <= eps * (1 + SLACK)).to_numpy(dtype=bool, na_value=False)
    unattacked = clean_of(records, clean)
    changed = {
        "adversarial_rank": records["adversarial_rank"].where(inside, records["clean_rank"]),
        **{name: records[name].where(inside, unattacked[name].to_numpy()) for name in verdicts_of(records)},
    }
    return with_status(records.assign(**changed))


def verdicts_of(records: pd.DataFrame) -> list[str]:
    """The columns of ``records`` that judge a query, of which more is better."""
    return [*VERDICTS, *(name for name in PRECISIONS if name in records)]


def clean_of(records: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """Clean record of the query of each row of ``records``, in their order."""
    keys = ["model", "direction", "query_id"]
    return clean.set_index(keys).reindex(pd.MultiIndex.from_frame(records[keys]))


def success_rates(table: pd.DataFrame) -> dict[str, float | int | None]:
    """Success rates (drop and flip) of the attacked rows of a table, each with its denominator."""
    attacked = table[table["status"] != "not_attacked"]
    clean = torch.tensor(attacked["clean_correct"].to_numpy(dtype=bool))
    adversarial = torch.tensor(attacked["adversarial_correct"].to_numpy(dtype=bool))
    drop, flip = attack_success_drop(clean, adversarial), attack_success_flip(clean, adversarial)
    return {
        "success_drop": drop.value,
        "success_drop_denominator": drop.denominator,
        "success_flip": flip.value,
        "success_flip_denominator": flip.denominator,
    }
