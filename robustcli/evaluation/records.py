"""Records of an evaluation: one row a query, model, attack, access and radius, of which every figure is an aggregation.

Columns: ``model`` (the row of the table) and ``defence`` (what cleans images in front of it, or none); ``attack``,
``access`` (see `access`) and ``eps`` (the radius it was run at; null: the smallest change was looked for);
``direction``, ``query_id``, ``image_id``; ``clean_rank``, ``adversarial_rank`` and whether each is 1; ``status``; what
``draws`` fresh answers say: ``mean``, the share that is right, ``worst``, whether all are, ``majority``, whether most
are; ``norm`` and ``edits`` of what came out, ``followed`` (a smallest change gone on with to a radius), and what it
cost. A set of classes has ``label``, ``clean_class`` and ``adversarial_class`` besides, captions the new ``caption``.

Shapes: Q queries of one direction, R draws.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from robustcli.metrics import attack_success_drop, attack_success_flip

Direction = Literal["image_to_text", "text_to_image", "image_to_class"]

CLEAN = "clean"  # the attack, and the access, of a record without attack
WORST = "worst"
BARE = "none"  # the defence of a model without one
VERDICTS = ("mean", "worst", "majority")
STATUSES = ("survived", "fooled", "already_wrong", "not_attacked")
SPENT = ("queries", "gradients", "zero_gradients", "nan_gradients")
COSTS = ("norm", *SPENT)  # of an image and its captions
SLACK = 1e-6  # relative; what a norm in float64 may exceed its radius by


def per_query(
    direction: Direction,
    query_ids: Sequence[int | str],
    image_ids: Sequence[int | str],
    clean_rank: Tensor,
    adversarial_rank: Tensor | None = None,
) -> pd.DataFrame:
    """One row a query: direction, query_id, image_id, clean and adversarial rank, whether each is 1, status.

    Args:
        direction: ``image_to_text``, ``text_to_image``, or ``image_to_class`` for a classifier.
        query_ids: Q names of the queries.
        image_ids: Q names of the image each query belongs to, the cluster of its interval.
        clean_rank: (Q,) long, rank of the best true match.
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
    """The table with ``clean_correct``, ``adversarial_correct`` and ``status`` as its ranks say."""
    table = table.assign(clean_correct=table["clean_rank"] <= 1, adversarial_correct=table["adversarial_rank"] <= 1)
    status = pd.Series("not_attacked", index=table.index)
    attacked = table["adversarial_rank"].notna()
    clean, adversarial = table["clean_correct"].fillna(False), table["adversarial_correct"].fillna(False)
    status[attacked & clean & adversarial] = "survived"
    status[attacked & clean & ~adversarial] = "fooled"
    status[attacked & ~clean] = "already_wrong"
    return table.assign(status=status)


def within(records: pd.DataFrame, clean: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Records as they are at the radius ``eps``: a change beyond it, or none that was found, puts the query back to
    what it is without attack.

    Args:
        clean: records without attack of the same models.
    """
    near = (records["norm"] <= eps * (1 + SLACK)).to_numpy(dtype=bool, na_value=False)
    untouched = clean_of(records, clean)
    changed = {
        "adversarial_rank": records["adversarial_rank"].where(near, records["clean_rank"]),
        **{name: records[name].where(near, untouched[name].to_numpy()) for name in VERDICTS},
    }
    return with_status(records.assign(**changed))


def clean_of(records: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """For each row of ``records`` the record of its query without attack."""
    keys = ["model", "direction", "query_id"]
    return clean.set_index(keys).reindex(pd.MultiIndex.from_frame(records[keys]))


def success_rates(table: pd.DataFrame) -> dict[str, float | int | None]:
    """Both success rates of the attacked rows of a table, each with its denominator."""
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
