"""Evaluator of text towers as classifiers of sentences: the classes are the gallery, the label its one positive entry.

Shapes: B sentences of a chunk, D embedding, M sentences, Y classes.
"""

from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import Gallery, Pairs, ThreatModel
from robustcli.attacks.core.passes import Problem
from robustcli.data.sentences import Sentences
from robustcli.diagnostics import RetrievalSubject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Keep, Part
from robustcli.evaluation.records import CLEAN, SPENT, per_query
from robustcli.evaluation.retrieval import encode_captions
from robustcli.evaluation.timing import Timing, pair_timing
from robustcli.utils.relevance import Relevance
from robustcli.utils.rowwise import cosines

DIRECTION: Final = "text_to_class"


class SentenceEvaluator(Evaluator):
    """Evaluator of sentences before classes: accuracy is the recall@1 of the label among the class vectors.

    Models are `robustcli.models.ClassEncoder`. An attack sees pairs of a sentence and its class before the gallery of
    all classes, which stay as they are; so ``threat.edits`` is ``query``. Each sentence is a cluster of its own.

    Args:
        threat: one that leaves images as they are.
        data, batch_size, limit, seed, on_chunk: see `Evaluator`; ``batch_size`` and ``limit`` count sentences.

    Raises:
        ValueError: a threat model that changes images, or edits anything but the query.
    """

    directions = (DIRECTION,)
    unit = "sentences"
    data: Sentences

    def __init__(self, *arguments: Any, limit: int | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.threat.moves_images or self.threat.edits != "query":
            raise ValueError(f"sentences alone are attacked, each as a query: not so within {self.threat!r}")
        count = len(self.data.captions)
        self.image_rows = torch.arange(count if limit is None else min(limit, count))  # of the sentences
        self._gather()

    def _gather(self) -> None:
        """The judged sentences and their classes."""
        self.captions, self.labels = tuple(self.data.captions[: len(self)]), self.data.owner[: len(self)]
        self.relevance = Relevance.of_pairs(torch.arange(len(self)), self.labels, (len(self), len(self.data.classes)))
        self._features: dict[str, Tensor] = {}

    def shorten(self, count: int, why: str) -> None:
        super().shorten(count, why)
        self._gather()

    @property
    def captions_per_image(self) -> float:
        return 1.0

    def problem(self, norm: str, randomised: bool) -> Problem:
        return Problem(captions=1, norm=norm, randomised=randomised)

    def timing(self, model: Any, rows: Tensor, threat: ThreatModel) -> Timing:
        return pair_timing(model, self.pairs(model, rows)[0], threat)

    def features(self, model: Any) -> Tensor:
        """Clean features (M,D) of the sentences; computed once for the same weights."""
        identity = model.fingerprint()
        if identity not in self._features:
            self._features[identity] = encode_captions(model, self.captions, 4 * self.batch_size)
        return self._features[identity]

    def class_vectors(self, model: Any) -> Tensor:
        """(Y,D) of unit norm."""
        with torch.no_grad():
            vectors: Tensor = model.encode_image(self.data.images(torch.arange(len(self.data.classes))))
            return vectors

    def images(self, model: Any, rows: Tensor) -> Tensor:
        """The numbers of the classes of the sentences ``rows`` as images (B,3,1,1)."""
        return self.data.images(self.labels[rows]).to(model.device)

    def pairs(self, model: Any, rows: Tensor) -> tuple[Pairs, Gallery]:
        """The sentences ``rows``, each with its class as its image, and the gallery of all classes."""
        labels, device = self.labels[rows], model.device
        pairs = Pairs(
            images=self.images(model, rows),
            captions=tuple(self.captions[row] for row in rows.tolist()),
            owner=torch.arange(len(rows)),
            image_ids=rows,
            caption_ids=rows,
            relevance=labels[:, None] == labels[None, :],
        )
        return pairs, Gallery(
            image_features=self.class_vectors(model),
            text_features=self.features(model),
            image_matches=self.relevance.T[labels].to(device),
            caption_matches=self.relevance[rows].to(device),
            image_rows=labels.to(device),
            caption_rows=rows.to(device),
        )

    def clean(self, entry: Entry) -> pd.DataFrame:
        return self._records(entry, CLEAN, CLEAN, None, self.features(entry.model), None)

    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        output = pd.concat(list(self.parts(run, keep=keep, part=part)), ignore_index=True)
        # Ranked together: how ties are broken depends on the place of a query among all.
        (entry,) = run.entries
        features = torch.from_numpy(np.stack(output.pop("feature").to_list())).to(entry.model.device)
        return self._records(entry, run.name, run.access, run.threat.radius, features, output)

    def answers(self, model: Any, images: Tensor) -> Tensor:
        features: Tensor = model.encode_image(images)
        return features

    def chance(self) -> dict[str, float]:
        return {DIRECTION: 1 / len(self.data.classes)}

    def subject(self, entry: Entry, samples: int) -> RetrievalSubject:
        pairs, gallery = self.pairs(entry.model, self.spread(samples))
        return RetrievalSubject(entry.model, pairs, self.threat, gallery=gallery)

    def describe(self) -> list[str]:
        classes = len(self.data.classes)
        return [
            f"{len(self):,} sentences of {classes} classes, answered by the text tower; a wrong sentence counts as "
            "fooled in robust figures.",
        ]

    def model_notes(self, model: Any, height: int, width: int) -> list[str]:
        return list(model.notes(height, width, self.captions))

    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        """None: what became of a sentence is told by its record, without a picture."""
        return []

    def attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        """One row a sentence with its edited text, which is encoded anew, and what it cost: that of the variant of the
        attack whose text lies farthest beyond the boundary; the costs are sums over all.
        """
        pairs, gallery = self.pairs(run.victim, rows)
        (entry,) = run.entries
        tables, margins = [], []
        for variant, result in run.attack.variants(run.victim, pairs, gallery, run.threat).items():
            # Audited here as well: a foreign attack need not have a base class that does so.
            run.threat.audit(result.images, pairs.images)
            edits = run.threat.audit_captions(result.captions, pairs.captions)
            if keep is not None:
                keep(run, Attacked(rows, result.images.cpu(), result.captions, variant))
            features = encode_captions(entry.model, result.captions, 4 * self.batch_size)
            columns = {
                "feature": list(features.cpu().float().numpy()),
                "edits": edits.numpy().astype("int64"),
                "caption": list(result.captions),
                "member": list(result.caption_members) or "",
            }
            costs = {name: getattr(result, name).cpu().numpy() for name in SPENT}
            tables.append(pd.DataFrame({**columns, **costs}))
            scores, true = cosines(features, self.class_vectors(entry.model)).cpu(), self.relevance.matrix(rows)
            margins.append(scores.masked_fill(true, -torch.inf).amax(1) - scores[true])
        chosen = torch.stack(margins).argmax(0).tolist()
        table = pd.concat([tables[which][row : row + 1] for row, which in enumerate(chosen)], ignore_index=True)
        spent = {name: pd.concat([each[name] for each in tables], axis=1).sum(axis=1) for name in SPENT}
        worst: pd.DataFrame = table.assign(**spent)
        return worst

    def _records(
        self, entry: Entry, attack: str, access: str, eps: float | None, features: Tensor, output: pd.DataFrame | None
    ) -> pd.DataFrame:
        """Records from features (M,D) of all sentences, clean or attacked (``output``: what came out)."""
        vectors = self.class_vectors(entry.model)
        clean, clean_class = self._answered(self.features(entry.model), vectors)
        ranks, answer = (clean, clean_class) if output is None else self._answered(features, vectors)
        ids = [str(row) for row in self.image_rows.tolist()]
        table = per_query(DIRECTION, ids, ids, clean, None if output is None else ranks)
        right = (ranks <= 1).numpy()
        table = table.assign(draws=1, mean=right.astype("float64"), worst=right, majority=right)
        table = table.assign(label=self._names(self.labels), clean_class=self._names(clean_class))
        if output is not None:
            columns = {str(name): values.to_numpy() for name, values in output.items()}
            table = table.assign(adversarial_class=self._names(answer), **columns)
        keys = {"model": entry.label, "defence": entry.defence, "attack": attack, "access": access}
        for position, (name, value) in enumerate(keys.items()):
            table.insert(position, name, value)
        table.insert(4, "eps", pd.Series([eps] * len(table), dtype="float64"))
        return table

    def _answered(self, features: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of the labels (M,) and the classes (M,) that are answered, on the CPU."""
        rank = metrics.ranking(features, vectors, self.relevance).rank
        false = cosines(features, vectors).cpu().masked_fill(self.relevance.matrix(), -torch.inf).argmax(1)
        return rank, torch.where(rank <= 1, self.labels, false)

    def _names(self, numbers: Tensor) -> list[str]:
        return [self.data.classes[number] for number in numbers.tolist()]
