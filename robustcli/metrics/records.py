"""The table of evidence: one row a query, of which every figure is an aggregation.

Shapes: Q queries of one direction.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from robustcli.metrics.retrieval import attack_success_drop, attack_success_flip

Direction = Literal["image_to_text", "text_to_image", "image_to_class"]

STATUSES = ("survived", "fooled", "already_wrong", "not_attacked")


def per_query(
    direction: Direction,
    query_ids: Sequence[int | str],
    image_ids: Sequence[int | str],
    clean_rank: Tensor,
    adversarial_rank: Tensor | None = None,
    *,
    k: int = 1,
) -> pd.DataFrame:
    """One row a query: direction, query_id, image_id, clean and adversarial rank, whether each is within ``k``, status.

    Args:
        direction: ``image_to_text``, ``text_to_image``, or ``image_to_class`` for a classifier.
        query_ids: Q names of the queries.
        image_ids: Q names of the image each query belongs to, the cluster of its interval.
        clean_rank: (Q,) long, rank of the best true match.
        adversarial_rank: the same under the attack; None leaves the columns null and the status ``not_attacked``.
        k: a query is correct where its rank is at most this.
    """
    clean = _ranks(clean_rank)
    missing = pd.array([pd.NA] * len(clean), dtype="Int64")
    adversarial = missing if adversarial_rank is None else _ranks(adversarial_rank)
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
    table["clean_correct"] = table["clean_rank"] <= k
    table["adversarial_correct"] = table["adversarial_rank"] <= k
    table["status"] = _status(table)
    return table


def success_rates(table: pd.DataFrame) -> dict[str, float | int | None]:
    """Both success rates of the attacked rows of a :func:`per_query` table, each with its denominator."""
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


def _ranks(values: Tensor) -> pd.api.extensions.ExtensionArray:
    return pd.array(values.cpu().numpy(), dtype="Int64")


def _status(table: pd.DataFrame) -> pd.Series:
    status = pd.Series("not_attacked", index=table.index)
    attacked = table["adversarial_rank"].notna()
    clean, adversarial = table["clean_correct"].fillna(False), table["adversarial_correct"].fillna(False)
    status[attacked & clean & adversarial] = "survived"
    status[attacked & clean & ~adversarial] = "fooled"
    status[attacked & ~clean] = "already_wrong"
    return status
