"""`robustcli verify`: the verdicts of a finished run, judged again from its stored inputs, without an attack."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustcli.engines.loading import Loaded
from robustcli.evaluation.stored import Stored
from robustcli.runs.manifest import INPUTS
from robustcli.runs.receipts import changed_files
from robustcli.utils.flatten import differences
from robustcli.utils.progress import Progress

Difference = tuple[str, str, str, str]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
_KEYS = ("model", "defence", "attack", "access", "eps", "direction", "query_id", "followed")
# What the search cost, and which member found it: known to the attack alone.
_OF_THE_SEARCH = ("queries", "gradients", "zero_gradients", "nan_gradients", "member", "image_id")
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6  # of numbers between two machines


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of the records of a run.

    Attributes:
        confirmed: records whose verdict, norm and edits are found again.
        different: (record, what differs, recorded, judged) of each of the others.
        unjudged: records without a stored input, such as those of a curve.
        broken: a sentence on each attack whose inputs cannot be judged, or are beyond the threat model.
        files: (name, fault) of each file that is not as the run left it.
        inputs: (name, recorded, found) of fingerprints of data, weights and words that are others today.
        hashed: the manifest has hashes of the files.
    """

    confirmed: int
    different: list[Difference]
    unjudged: int
    broken: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    inputs: list[tuple[str, str, str]] = field(default_factory=list)
    hashed: bool = True

    @property
    def holds(self) -> bool:
        """True where nothing speaks against the run."""
        return not (self.different or self.broken or self.files or self.inputs)


def verify(directory: Path, manifest: Mapping[str, Any], records: pd.DataFrame, loaded: Loaded) -> Verification:
    """Judge the stored inputs of the run in ``directory`` by the pipeline that judged it, its audits included.

    Args:
        manifest, records: of the run.
        loaded: models, data and evaluation, as its command line loads them today.
    """
    recorded = {key: manifest[key] for key in INPUTS if key in manifest and key != "files"}
    inputs = differences(recorded, {key: value for key, value in loaded.fingerprints().items() if key in recorded})
    tables, broken = judge_again(directory, loaded)
    different, confirmed, unjudged = compare_records(records, pd.concat(tables, ignore_index=True))
    hashes = manifest.get("outputs")
    return Verification(
        confirmed=confirmed,
        different=different,
        unjudged=unjudged,
        broken=broken,
        files=changed_files(directory, hashes) if isinstance(hashes, dict) else [],
        inputs=[(name, str(old), str(new)) for name, (old, new) in inputs.items()],
        hashed=isinstance(hashes, dict),
    )


def judge_again(directory: Path, loaded: Loaded) -> tuple[list[pd.DataFrame], list[str]]:
    """Records of what is stored, the clean ones first; a sentence on each run that cannot be judged."""
    evaluation = loaded.evaluation
    stored = Stored(directory, evaluation, loaded.groups)
    tables = [evaluation.evaluator.clean(entry) for group in loaded.groups for entry in group.entries]
    replays = [stored.replayed(run) for group in loaded.groups for run in evaluation.runs(group)]
    found, broken = [replay for replay in replays if replay is not None], []
    with Progress(len(found) * len(evaluation.evaluator), "verify", unit=evaluation.evaluator.unit) as progress:
        for replay in found:
            evaluation.evaluator.on_chunk = progress.advance
            try:
                tables.append(evaluation.evaluator.attacked(replay))
            except (ValueError, RuntimeError) as error:  # unreadable, or an audit
                broken.append(f"{replay.entries[0].label}, {replay.name}: {error}")
    return tables, broken


def compare_records(records: pd.DataFrame, again: pd.DataFrame) -> tuple[list[Difference], int, int]:
    """Records that differ or are missing, and the numbers of those that are confirmed and that have no stored input."""
    keys = [key for key in _KEYS if key in records and key in again]
    old, new = (table.set_index(keys) for table in (records, again))
    has_input = old.index.isin(new.index)
    rows = old[has_input]
    judged = new.reindex(rows.index)
    different = [
        (_named(record, keys), "record", "missing", "judged") for record in new.index[~new.index.isin(old.index)]
    ]
    confirmed = np.ones(len(rows), dtype=bool)
    for name in [name for name in rows.columns if name not in _OF_THE_SEARCH]:
        found = judged[name] if name in judged else pd.Series(pd.NA, index=rows.index)
        equal = _equal(rows[name].reset_index(drop=True), found.reset_index(drop=True))
        for row in np.nonzero(confirmed & ~equal)[0].tolist():
            different.append((_named(rows.index[row], keys), name, str(rows[name].iloc[row]), str(found.iloc[row])))
        confirmed &= equal
    return different, int(confirmed.sum()), int((~has_input).sum())


def _equal(old: "pd.Series[Any]", new: "pd.Series[Any]") -> Bools:
    """(R,) bool: equal, or both absent; numbers but for rounding."""
    if pd.api.types.is_float_dtype(old.dtype):
        first, second = (np.asarray(side.to_numpy(dtype=float, na_value=np.nan)) for side in (old, new))
        close: Bools = np.isclose(first, second, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
        return close
    same = (old == new).fillna(False).astype(bool) | (old.isna() & new.isna())
    return np.asarray(same.to_numpy(), dtype=bool)


def _named(values: Any, keys: list[str]) -> str:
    """The record in a line, without what it has no value of."""
    told = zip(keys, values, strict=True)
    return ", ".join(str(value) for key, value in told if value == value and key not in ("followed", "defence"))
