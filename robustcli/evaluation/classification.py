"""Evaluator of classifiers: the class list is the gallery, and the label its one positive entry.

Shapes: B images of a chunk, C channels, H height, W width, R fresh draws, Y classes.
"""

from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks import ClassifierAttack, ThreatModel, judge_on_draws
from robustcli.attacks.adaptive.randomised import DrawnAnswers
from robustcli.attacks.adaptive.surrogate import attack_for_transfer
from robustcli.attacks.core.passes import Problem
from robustcli.data.classes import ImageClassData
from robustcli.diagnostics import ClassifierSubject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Keep, Part
from robustcli.evaluation.records import CLEAN, SPENT, per_query
from robustcli.evaluation.timing import Timing, class_timing

DIRECTION: Final = "image_to_class"
_PICTURED = (4, 5)  # images of a picture, see `Evaluator.spread`


class ClassificationEvaluator(Evaluator):
    """Evaluator of classifiers: accuracy is the recall@1 of the label among the classes.

    Args:
        radii: to which minimum-norm perturbations are extended where the model that is judged is randomised, or not the
            one that was attacked; see `_extended`.
        data, threat, batch_size, limit, fresh, seed, at_model, on_chunk: see `Evaluator`.
    """

    directions = (DIRECTION,)
    data: ImageClassData

    def __init__(self, *arguments: Any, radii: tuple[float, ...] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.radii = radii
        self._clean: dict[str, tuple[Any, pd.DataFrame]] = {}
        self._pictured: dict[str, dict[int, Tensor]] = {}

    def clean(self, entry: Entry) -> pd.DataFrame:
        if entry.label not in self._clean or self._clean[entry.label][0] is not entry.model:
            tables = [self._judged(entry, *self.batch(entry.model, rows), rows) for rows in self.chunks()]
            table = pd.concat(tables, ignore_index=True)
            ranks = torch.tensor(table["rank"].tolist())
            basic = per_query(DIRECTION, table["query_id"].tolist(), table["image_id"].tolist(), ranks)
            judged = table[["draws", "mean", "worst", "majority", "label"]].assign(clean_class=table["answer"])
            records = _labelled(pd.concat([basic, judged], axis=1), entry, CLEAN, CLEAN, None)
            self._clean[entry.label] = entry.model, records
        return self._clean[entry.label][1]

    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        parts = list(self.parts(run, keep=keep, part=part))
        return pd.concat(parts, ignore_index=True)

    def batch(self, model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) and labels (B,) of ``rows``, where the model is."""
        return self.images(model, rows), self.data.labels[rows].to(model.device)

    def timing(self, model: Any, rows: Tensor, threat: ThreatModel) -> Timing:
        return class_timing(model, *self.batch(model, rows), threat)

    def problem(self, norm: str, randomised: bool) -> Problem:
        return Problem(classes=len(self.data.classes), norm=norm, randomised=randomised)

    def shorten(self, count: int, why: str) -> None:
        super().shorten(count, why)
        self._clean.clear()
        self._pictured.clear()

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
        images, x_adv = self.images(run.victim, rows), self.adversarial(run, rows)
        by_id = records.set_index("query_id")
        shown = []
        for position, row in enumerate(rows.tolist()):
            record = by_id.loc[self.data.image_ids[row]]
            shown.append(
                Example(
                    clean=_rgb(images[position]),
                    adversarial=_rgb(x_adv[position]),
                    caption=str(record["clean_class"]),
                    adversarial_caption=str(record["adversarial_class"]),
                    note=f"label {record['label']}",
                )
            )
        return shown

    def perturbed(
        self, run: AttackRun, images: Tensor, labels: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, np.ndarray]]:
        """Adversarial images (B,C,H,W) of ``run``, audited here; their costs (B,) by name, and of an ensemble the
        ``member`` that each is from.

        Raises:
            RuntimeError: an image beyond the threat model of the run.
        """
        attack: ClassifierAttack = run.attack
        if run.access == "static":
            # The images are judged on other models too, so those that the bare one misclassifies are attacked as well.
            x_adv, counter = attack_for_transfer(attack, run.victim, images, labels, rows, run.threat)
            costs, members = {name: getattr(counter, name).cpu().numpy() for name in SPENT}, ("",) * len(rows)
        else:
            result = attack(run.victim, images, labels, run.threat, sample_ids=rows)
            x_adv, members = result.images, result.members or ("",) * len(rows)
            costs = {name: getattr(result, name).cpu().numpy() for name in SPENT}
        norm = run.threat.at(None).audit(x_adv, images)
        if attack.minimum_norm:  # a success beyond eps is none: the image stays clean
            within_eps = (norm <= run.threat.ball.eps).to(images.device)
            x_adv = torch.where(within_eps.view(-1, 1, 1, 1), x_adv, images)
        run.threat.audit(x_adv, images)  # of a foreign attack too, whatever its base class checks
        return x_adv, costs | {"norm": norm.cpu().numpy(), "member": np.array(members, dtype=object)}

    def adversarial(self, run: AttackRun, rows: Tensor) -> Tensor:
        """Adversarial images (B,C,H,W) of ``run`` for pictures, where the victim is: those that were judged, where
        this process attacked them; else the attack runs again.
        """
        known = self._pictured.get(run.part, {})
        if all(row in known for row in rows.tolist()):
            return torch.stack([known[row] for row in rows.tolist()]).to(run.victim.device)
        return self.perturbed(run, *self.batch(run.victim, rows), rows)[0]

    def attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        images, labels = self.batch(run.victim, rows)
        x_adv, costs = self.perturbed(run, images, labels, rows)
        # A picture would else pay for an attack through a purifier again, which at full size takes minutes an image.
        pictured = {row for count in _PICTURED for row in self.spread(count).tolist()}
        few = {row: x_adv[place].cpu() for place, row in enumerate(rows.tolist()) if row in pictured}
        self._pictured.setdefault(run.part, {}).update(few)
        if keep is not None:
            keep(run, Attacked(rows, x_adv.cpu()))
        tables = [self._records(run, entry, x_adv, labels, rows, costs) for entry in run.entries]
        if run.attack.minimum_norm and run.threat.radius is None:
            tables += [
                self._extended(run, entry, x_adv, images, labels, rows, eps)
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
        costs: dict[str, np.ndarray],
        *,
        eps: float | None = None,
    ) -> pd.DataFrame:
        """Records of ``entry`` on adversarial images; ``eps`` is given for images that were extended to that radius."""
        judged = self._judged(entry, images, labels, rows)
        clean = self.clean(entry).set_index("query_id").loc[judged["query_id"]]
        ranks = (torch.tensor(side.tolist()) for side in (clean["clean_rank"], judged["rank"]))
        basic = per_query(DIRECTION, judged["query_id"].tolist(), judged["image_id"].tolist(), *ranks)
        verdicts = judged[["draws", "mean", "worst", "majority", "label"]]
        values = dict(costs)
        if run.attack.minimum_norm and eps is None:  # no norm without a success: a 0 would count as one at any radius
            deterministic_victim = entry.model is run.victim and not entry.randomised
            failed = basic["adversarial_correct"].to_numpy(dtype=bool) & (deterministic_victim | (values["norm"] == 0))
            values["norm"] = np.where(failed, np.nan, values["norm"])
        table = pd.concat([basic, verdicts], axis=1).assign(
            clean_class=clean["clean_class"].to_numpy(),
            adversarial_class=judged["answer"].to_numpy(),
            followed=eps is not None,
            **values,
        )
        return _labelled(table, entry, run.name, run.access, run.threat.radius if eps is None else eps)

    def _extended(
        self, run: AttackRun, entry: Entry, x_adv: Tensor, images: Tensor, labels: Tensor, rows: Tensor, eps: float
    ) -> pd.DataFrame:
        """Records of minimum-norm perturbations that are scaled up to the radius ``eps`` (column ``followed``).

        They end on the decision boundary of the attacked model, where another model, or the next draw of a randomised
        one, may well be correct; an attacker with that budget would use all of it.
        """
        threat = run.threat.at(eps)
        norm = threat.ball.distance(x_adv, images)
        inside = torch.nonzero((norm > 0) & (norm < eps)).flatten()
        factor = (eps / norm[inside]).to(x_adv).view(-1, 1, 1, 1)
        clean = images[inside]
        extended = threat.project(clean + factor * (x_adv[inside] - clean), clean)
        costs = {"norm": threat.audit(extended, clean).cpu().numpy()}
        return self._records(run, entry, extended, labels[inside], rows[inside.cpu()], costs, eps=eps)

    def _judged(self, entry: Entry, images: Tensor, labels: Tensor, rows: Tensor) -> pd.DataFrame:
        """Verdicts of fresh draws on images (B,C,H,W); an image has the same draws in any batch."""
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
    keys = {"model": entry.label, "defence": entry.defence, "attack": attack, "access": access}
    for position, (name, value) in enumerate(keys.items()):
        table.insert(position, name, value)
    table.insert(4, "eps", pd.Series([eps] * len(table), dtype="float64", index=table.index))
    return table


def _rgb(image: Tensor) -> Tensor:
    return image.cpu().expand(3, -1, -1) if image.shape[0] == 1 else image.cpu()
