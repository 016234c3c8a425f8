"""Table of sentences as an attack edited them: where other reports have pictures."""

from collections.abc import Sequence
from itertools import takewhile

import pandas as pd

from robustcli.evaluation import SentenceEvaluator
from robustcli.report.tables import Grid, label_of

_ROWS = 6
_BEFORE, _AFTER = 60, 140  # letters around the first edit: a review has thousands


def edited_grid(evaluator: SentenceEvaluator, records: pd.DataFrame, model: str, attack: str) -> Grid:
    """Some sentences before and after ``attack`` on ``model``, those that fell first, around their first edit."""
    own = records[(records["model"] == model) & (records["attack"] == attack)]
    own = own.sort_values("status", key=lambda status: status != "fooled", kind="stable").head(_ROWS)
    rows = []
    for row in own.to_dict("records"):
        clean, edited = _around_the_edit((evaluator.captions[int(row["query_id"])], str(row["caption"])))
        rows.append([row["label"], clean, edited, row["clean_class"], row["adversarial_class"]])
    title = f"{model}: some sentences under {label_of(attack)}, its worst attack"
    return Grid(title, ["class", "sentence", "as edited", "answer", "answer to it as edited"], rows)


def _shared(texts: Sequence[str]) -> int:
    """Number of letters that all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))


def _around_the_edit(texts: Sequence[str]) -> list[str]:
    start = max(0, _shared(texts) - _BEFORE)
    stop = start + _BEFORE + _AFTER
    return [("…" if start else "") + text[start:stop] + ("…" if len(text) > stop else "") for text in texts]
