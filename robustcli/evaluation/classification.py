"""Judging a classifier on a set of labelled images: the class list is the gallery, and the label the one true entry.

Shapes: B chunk of images, N images, Y classes.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import ClassifierAttack, MinimumNormAttack
from robustcli.attacks.adaptive.wrapped import WrappedAttack
from robustcli.data.classes import ImageClassData
from robustcli.diagnostics import ClassifierSubject
from robustcli.evaluation.base import COSTS, Attacked, Judge, Keep, Part, computed, drawn_alike
from robustcli.report.figures import Example

DIRECTION: Final = "image_to_class"


class ClassificationJudge(Judge):
    """Judges classifiers on the first ``limit`` images; recall@1 of the label among the classes is the accuracy.

    Args:
        data, batch_size, limit, on_chunk: see `Judge`.
    """

    directions = (DIRECTION,)

    def __init__(
        self,
        data: ImageClassData,
        *,
        batch_size: int,
        limit: int | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(data, batch_size=batch_size, limit=limit, on_chunk=on_chunk)
        self.data = data

    def records(
        self,
        model: Any,
        label: str,
        name: str,
        attack: ClassifierAttack | None,
        *,
        keep: Keep | None = None,
        part: Part | None = None,
    ) -> pd.DataFrame:
        parts, kept = [], part or computed
        for number, rows in enumerate(self.chunks()):

            def compute(rows: Tensor = rows) -> pd.DataFrame:
                return self._judge_chunk(model, attack, rows, keep)

            parts.append(compute() if attack is None else kept(f"{label}-{name}-{number:05d}", compute))
            self.on_chunk(len(rows))
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "model", label)
        table.insert(1, "attack", name)
        return table

    def batch(self, model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) and labels (B,) of ``rows``, where the model is."""
        return self.data.images(rows).to(model.device), self.data.labels[rows].to(model.device)

    def chance(self) -> dict[str, float]:
        return {DIRECTION: 1 / len(self.data.classes)}

    def subject(self, model: Any, samples: int) -> ClassifierSubject:
        rows = self.spread(samples)
        return ClassifierSubject(model, *self.batch(model, rows), rows)

    def describe(self) -> list[str]:
        return [
            f"{len(self)} images of {len(self.data.classes)} classes; a wrong image counts as fooled in robust figures."
        ]

    def examples(self, model: Any, attack: ClassifierAttack, records: pd.DataFrame, count: int) -> list[Example]:
        rows = self.spread(count)
        images, labels = self.batch(model, rows)
        attacked = attack(model, images, labels, rows).images
        found = records.set_index("query_id")
        shown = []
        for place, row in enumerate(rows.tolist()):
            record = found.loc[self.data.image_ids[row]]
            shown.append(
                Example(
                    clean=_rgb(images[place]),
                    adversarial=_rgb(attacked[place]),
                    caption=str(record["clean_class"]),
                    adversarial_caption=str(record["adversarial_class"]),
                    note=f"label {record['label']}",
                )
            )
        return shown

    def _judge_chunk(
        self, model: Any, attack: ClassifierAttack | None, rows: Tensor, keep: Keep | None
    ) -> pd.DataFrame:
        images, labels = self.batch(model, rows)
        clean = _logits(model, images)
        names = [self.data.image_ids[i] for i in rows.tolist()]
        known: dict[str, Any] = {"label": self._names(labels), "clean_class": self._names(clean.argmax(1))}
        if attack is None:
            return metrics.per_query(DIRECTION, names, names, label_ranks(clean, labels)).assign(**known)
        found = attack(model, images, labels, rows)
        if keep is not None:
            keep(Attacked(rows, found.images.cpu()))
        hostile = _logits(model, _within(attack, found.images, images, found.norm))
        table = metrics.per_query(DIRECTION, names, names, label_ranks(clean, labels), label_ranks(hostile, labels))
        costs = {key: getattr(found, key).cpu().numpy() for key in COSTS}
        costs["norm"] = np.where(np.isfinite(costs["norm"]), costs["norm"], np.nan)  # none was found
        return table.assign(**known, adversarial_class=self._names(hostile.argmax(1)), **costs)

    def _names(self, classes: Tensor) -> list[str]:
        return [self.data.classes[i] for i in classes.tolist()]


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) long: rank of the label among the classes (B,Y); equal logits go to the class that stands first."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device)[None, :] < labels[:, None]
    return 1 + ((logits > own) | ((logits == own) & earlier)).sum(1).cpu()


def at_eps(records: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The records of a minimum-norm attack as they would be at ``eps``: a farther success is none."""
    near = records["norm"].notna() & (records["norm"] <= eps)
    rank = records["adversarial_rank"].where(near, records["clean_rank"])
    judged = metrics.per_query(
        DIRECTION,
        records["query_id"].tolist(),
        records["image_id"].tolist(),
        torch.from_numpy(records["clean_rank"].to_numpy(dtype="int64")),
        torch.from_numpy(rank.to_numpy(dtype="int64")),
    )
    return records.assign(
        **{name: judged[name].to_numpy() for name in ("adversarial_rank", "adversarial_correct", "status")}
    )


def _within(attack: ClassifierAttack, images: Tensor, clean: Tensor, norm: Tensor) -> Tensor:
    """The images, but the clean one where a minimum-norm attack with a radius found nothing within it."""
    bare = _bare(attack)
    if not isinstance(bare, MinimumNormAttack) or bare.eps is None:
        return images
    return torch.where((norm.to(images.device) <= bare.eps).view(-1, 1, 1, 1), images, clean)


def is_minimum_norm(attack: Any) -> bool:
    """Whether one run of ``attack`` holds the whole curve over eps."""
    return isinstance(_bare(attack), MinimumNormAttack)


def _bare(attack: Any) -> Any:
    return _bare(attack.attack) if isinstance(attack, WrappedAttack) else attack


@torch.no_grad()
def _logits(model: Any, images: Tensor) -> Tensor:
    with drawn_alike():
        logits: Tensor = model(images)
    if not bool(logits.isfinite().all()):
        raise ValueError("the model gave NaN or infinite logits: they have no rank")
    return logits


def _rgb(image: Tensor) -> Tensor:
    return image.cpu().expand(3, -1, -1) if image.shape[0] == 1 else image.cpu()
