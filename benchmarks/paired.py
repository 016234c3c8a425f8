"""Defences of a sweep compared query by query: `python -m benchmarks.paired SWEEP [DEFENCE]`.

Every job of a sweep judges the same queries, so the difference of two defences has a narrower interval than each of
them: a paired bootstrap over images, the seeds of a defence averaged first.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from robustcli.evaluation.aggregate import with_worst
from robustcli.metrics import bootstrap_difference
from robustcli.utils import files

ATTACKS = ("clean", "sep", "sga", "sequential", "worst")


def hits(sweep: Path) -> pd.DataFrame:
    """Share of the seeds that answer a query rightly, by defence (columns), for each attack, direction and query."""
    parts = []
    for job in sorted(path.parent for path in sweep.rglob("DONE")):
        records = with_worst(pd.read_parquet(job / "records.parquet"))
        hit = (records["adversarial_rank"].fillna(records["clean_rank"]) <= 1).astype(float)
        defence = files.read_yaml(job / "config.yaml")["defense"]["name"]
        parts.append(records[["attack", "direction", "image_id", "query_id"]].assign(hit=hit, defence=defence))
    keys = ["attack", "direction", "image_id", "query_id"]
    return pd.concat(parts).pivot_table(index=keys, columns="defence", values="hit", aggfunc="mean").reset_index()


def main(sweep: Path, ahead: str) -> None:
    """Print how far the defence ``ahead`` is ahead of each other one, in points of recall@1."""
    table = hits(sweep)
    others = [name for name in table.columns if name not in (*table.columns[:4], ahead)]
    shown = Table("attack", "direction", *[f"{ahead} - {other}" for other in others], title="Recall@1, 95 % intervals")
    for (attack, direction), rows in table.groupby(["attack", "direction"], sort=False):
        if attack in ATTACKS:
            groups = torch.from_numpy(pd.factorize(rows["image_id"])[0])
            shown.add_row(attack, direction, *[_difference(rows, ahead, other, groups) for other in others])
    Console().print(shown)


def _difference(rows: pd.DataFrame, ahead: str, other: str, groups: torch.Tensor) -> str:
    first, second = (torch.from_numpy(rows[name].to_numpy(dtype=float, copy=True)) for name in (ahead, other))
    interval = bootstrap_difference(first, second, groups)
    assert interval.mean is not None and interval.low is not None and interval.high is not None
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "mat")
