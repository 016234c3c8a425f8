"""Evaluator of classifiers: the class list is the gallery, and the label the one true entry.

Shapes: B chunk of images, C channels, H height, W width, R fresh answers, Y classes.
"""

from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks import ClassifierAttack, judge_on_draws
from robustcli.attacks.adaptive.randomised import DrawnAnswers
from robustcli.attacks.adaptive.surrogate import attack_for_transfer
from robustcli.data.classes import ImageClassData
from robustcli.diagnostics import ClassifierSubject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Keep, Part, computed
from robustcli.evaluation.records import CLEAN, SPENT, per_query

DIRECTION: Final = "image_to_class"


class ClassificationEvaluator(Evaluator):
    """Recall@1 of the label among the classes is the accuracy.

    Args:
        radii: to which smallest changes are followed on, where the model that is judged is not the one that they were
            found on, or draws; see `_followed`.
        data, threat, batch_size, limit, fresh, seed, on_chunk: see `Evaluator`.
    """

    directions = (DIRECTION,)
    data: ImageClassData

    def __init__(self, *arguments: Any, radii: tuple[float, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.radii = radii
        self._clean: dict[str, tuple[Any, pd.DataFrame]] = {}

    def clean(self, entry: Entry) -> pd.DataFrame:
        if entry.label not in self._clean or self._clean[entry.label][0] is not entry.model:
            tables = [self._verdicts(entry, *self.batch(entry.model, rows), rows) for rows in self.chunks()]
            table = pd.concat(tables, ignore_index=True)
            ranks = torch.tensor(table["rank"].tolist())
            basic = per_query(DIRECTION, table["query_id"].tolist(), table["image_id"].tolist(), ranks)
            said = table[["draws", "mean", "worst", "majority", "label"]].assign(clean_class=table["answer"])
            known = _labelled(pd.concat([basic, said], axis=1), entry, CLEAN, CLEAN, None)
            self._clean[entry.label] = entry.model, known
        return self._clean[entry.label][1]

    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        kept, parts = part or computed, []
        for number, rows in enumerate(self.chunks()):

            def compute(rows: Tensor = rows) -> pd.DataFrame:
                return self._attack_chunk(run, rows, keep)

            parts.append(kept(f"{run.part}/{number:05d}", compute))
            self.on_chunk(len(rows))
        return pd.concat(parts, ignore_index=True)

    def batch(self, model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) and labels (B,) of ``rows``, where the model is."""
        return self.data.images(rows).to(model.device), self.data.labels[rows].to(model.device)

    def answers(self, model: Any, images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits

    def chance(self) -> dict[str, float]:
        return {DIRECTION: 1 / len(self.data.classes)}

    def subject(self, entry: Entry, samples: int) -> ClassifierSubject:
        rows = self.spread(samples)
        return ClassifierSubject(entry.model, *self.batch(entry.model, rows), self.threat, sample_ids=rows)

    def describe(self) -> list[str]:
        classes = len(self.data.classes)
        return [f"{len(self)} images of {classes} classes; a wrong image counts as fooled in robust figures."]

    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        rows = self.spread(count)
        images, labels = self.batch(run.victim, rows)
        attacked = self.perturbed(run, images, labels, rows)[0]
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

    def perturbed(
        self, run: AttackRun, images: Tensor, labels: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B,C,H,W) as the attack of ``run`` leaves them, audited here, and their costs (B,) by name.

        Raises:
            RuntimeError: an image beyond the threat model of the run.
        """
        attack: ClassifierAttack = run.attack
        if run.access == "static":
            found, spent = attack_for_transfer(attack, run.victim, images, labels, rows, run.threat)
            costs = {name: getattr(spent, name) for name in SPENT}
        else:
            result = attack(run.victim, images, labels, run.threat, sample_ids=rows)
            found, costs = result.images, {name: getattr(result, name) for name in SPENT}
        moved = run.threat.at(None).audit(found, images)
        if attack.minimum_norm:  # a success beyond eps is none: the image stays clean
            near = (moved <= run.threat.ball.eps).to(images.device)
            found = torch.where(near.view(-1, 1, 1, 1), found, images)
        run.threat.audit(found, images)
        return found, costs | {"norm": moved}

    def _attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        images, labels = self.batch(run.victim, rows)
        found, costs = self.perturbed(run, images, labels, rows)
        if keep is not None:
            keep(run, Attacked(rows, found.cpu()))
        tables = [self._records(run, entry, found, labels, rows, costs) for entry in run.entries]
        if run.attack.minimum_norm and run.threat.radius is None:
            tables += [
                self._followed(run, entry, found, images, labels, rows, eps)
                for eps in self.radii
                for entry in run.entries
                if entry.randomised or (run.access == "static" and entry.model is not run.victim)
            ]
        return pd.concat(tables, ignore_index=True)

    def _records(
        self,
        run: AttackRun,
        entry: Entry,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        costs: dict[str, Tensor],
        *,
        eps: float | None = None,
    ) -> pd.DataFrame:
        """What ``entry`` says of attacked images; ``eps`` in place of that of the run: followed to that radius."""
        said = self._verdicts(entry, images, labels, rows)
        clean = self.clean(entry).set_index("query_id").loc[said["query_id"]]
        ranks = (torch.tensor(side.tolist()) for side in (clean["clean_rank"], said["rank"]))
        basic = per_query(DIRECTION, said["query_id"].tolist(), said["image_id"].tolist(), *ranks)
        verdicts = said[["draws", "mean", "worst", "majority", "label"]]
        values = {name: value.cpu().numpy() for name, value in costs.items()}
        if run.attack.minimum_norm and eps is None:  # no norm where nothing was found: a 0 would be a success
            own = entry.model is run.victim and not entry.randomised
            nothing = basic["adversarial_correct"].to_numpy(dtype=bool) & (own | (values["norm"] == 0))
            values["norm"] = np.where(nothing, np.nan, values["norm"])
        table = pd.concat([basic, verdicts], axis=1).assign(
            clean_class=clean["clean_class"].to_numpy(),
            adversarial_class=said["answer"].to_numpy(),
            followed=eps is not None,
            **values,
        )
        return _labelled(table, entry, run.name, run.access, run.threat.radius if eps is None else eps)

    def _followed(
        self, run: AttackRun, entry: Entry, found: Tensor, images: Tensor, labels: Tensor, rows: Tensor, eps: float
    ) -> pd.DataFrame:
        """Smallest changes followed on in their direction to the radius ``eps``.

        They end on the boundary of the model that they were found on. Another one may well be right there, and so may
        the next answer of one that draws; an attacker who may go as far as the radius does.
        """
        threat = run.threat.at(eps)
        length = threat.ball.distance(found, images)
        short = torch.nonzero((length > 0) & (length < eps)).flatten()
        way = (eps / length[short]).to(found).view(-1, 1, 1, 1)
        wider = threat.project(images[short] + way * (found[short] - images[short]), images[short])
        norm = {"norm": threat.audit(wider, images[short])}
        return self._records(run, entry, wider, labels[short], rows[short.cpu()], norm, eps=eps)

    def _verdicts(self, entry: Entry, images: Tensor, labels: Tensor, rows: Tensor) -> pd.DataFrame:
        """What fresh answers say of images (B,C,H,W); the draws of an image are the same in any batch."""
        draws = self.draws(entry)
        drawn: DrawnAnswers = judge_on_draws(
            entry.model, images, labels, draws=draws, seed=self.seed, names=rows.tolist()
        )
        names = [self.data.image_ids[i] for i in rows.tolist()]
        return pd.DataFrame(
            {
                "query_id": names,
                "image_id": names,
                "rank": drawn.rank().numpy(),
                "answer": [self.data.classes[i] for i in drawn.answer().tolist()],
                "label": [self.data.classes[i] for i in labels.tolist()],
                "draws": draws,
                "mean": drawn.mean().numpy(),
                "worst": drawn.worst().numpy(),
                "majority": drawn.majority().numpy(),
            }
        )


def _labelled(table: pd.DataFrame, entry: Entry, attack: str, access: str, eps: float | None) -> pd.DataFrame:
    known = {"model": entry.label, "defence": entry.defence, "attack": attack, "access": access}
    for place, (name, value) in enumerate(known.items()):
        table.insert(place, name, value)
    table.insert(4, "eps", pd.Series([eps] * len(table), dtype="float64", index=table.index))
    return table


def _rgb(image: Tensor) -> Tensor:
    return image.cpu().expand(3, -1, -1) if image.shape[0] == 1 else image.cpu()
