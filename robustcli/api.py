"""`robustcli.evaluate`: a model under attacks in a few lines of a notebook, by the pipeline of the command line.

Shapes: N images, B batch, C channels, H height, W width, Y classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack, ClassifierAttack, RetrievalAttack, SepAttack, ThreatModel
from robustcli.attacks.core.base import ImageAttack
from robustcli.builders.attacks import build_suite
from robustcli.builders.candidates import lazy_candidates
from robustcli.config import groups
from robustcli.config.compose import compose
from robustcli.data import ImageClassData, ImageTextData
from robustcli.data.class_arrays import fingerprint_of
from robustcli.data.classes import PixelClasses
from robustcli.defenses import PurifiedClassifier
from robustcli.diagnostics import Finding
from robustcli.evaluation import (
    ClassificationEvaluator,
    Evaluation,
    Evaluator,
    Group,
    RetrievalEvaluator,
    estimate,
)
from robustcli.evaluation.aggregate import at_radius, robust_recall, summarise, with_worst
from robustcli.models import Classifier, DualEncoder, ZeroShot
from robustcli.report.diagnose import find_all
from robustcli.report.diagnostics import with_verdicts
from robustcli.report.tables import Grid, attack_grid
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Part, Progress
from robustcli.utils.suggest import did_you_mean

Data = ImageClassData | ImageTextData | tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Result of `evaluate`; in a notebook it shows as a table.

    Attributes:
        table: one row a model, attack (``clean`` and ``worst`` among them) and direction, with intervals; the figure is
            ``recall_at_1``, which is the accuracy of a classifier.
        records: one row a query, model, attack and radius, as in ``records.parquet``.
        diagnostics: findings on the attack that hurts each model most.
        threat: the threat model of all attacks.
        notes: sentences on data and protocol.
    """

    table: pd.DataFrame
    records: pd.DataFrame
    diagnostics: tuple[Finding, ...]
    threat: ThreatModel
    notes: tuple[str, ...]

    def robust(self, model: str = "model") -> float:
        """Recall@1 of ``model`` under the worst attack on each query, in [0,1], mean over the directions."""
        return robust_recall(self.table, model)

    @property
    def grid(self) -> Grid:
        """The table as it is printed: percent, half intervals, verdicts."""
        return with_verdicts(attack_grid(self.table), self.diagnostics)

    def __str__(self) -> str:
        return "\n".join([self.grid.title, self._shown().to_string(index=False), *self.notes])

    def _repr_html_(self) -> str:
        return f"<p>{self.grid.title}</p>{self._shown().to_html(index=False)}"

    def _shown(self) -> pd.DataFrame:
        rows = [[" ".join(str(cell).split()) for cell in row] for row in self.grid.rows]
        return pd.DataFrame(rows, columns=list(self.grid.columns))


def evaluate(
    model: nn.Module | Mapping[str, nn.Module],
    data: Data,
    *,
    threat: ThreatModel | None = None,
    attacks: str | Sequence[str] | Mapping[str, Attack] = "standard",
    limit: int | None = None,
    batch_size: int = 128,
    diagnostics: str = "auto",
    share: float | None = 0.25,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> EvaluationResult:
    """Judge a model, clean and under attacks within one threat model, and say whether the figures are to be believed.

    The model computes where it is, and is left as it was: weights, gradients, modes and global generators.

    Args:
        model: any network that takes images (B,C,H,W) in [0,1] and gives logits (B,Y), a `robustcli.models.Classifier`
            or a `DualEncoder`; or several of them by the names of their rows.
        data: images (N,C,H,W) in [0,1] with labels (N,), or a set of `robustcli.data`.
        threat: None: eps 4/255 in L-inf, and one word of a caption.
        attacks: a suite (``quick``, ``standard``, ``strong``), names of attacks, or attacks by the names of their
            columns.
        limit: the first so many images; None: all.
        batch_size: images that are attacked at once; figures depend on it by rounding alone.
        diagnostics: ``auto``: of the worst attack on each model; ``full``: of every attack; ``off``.
        share: of the passes of the attacks, which the diagnostics may take under ``auto``; None: no limit.
        resamples: of the bootstrap intervals.
        seed: of all draws.
        progress: show the cost, and the progress on the standard error.

    Raises:
        UserError: images out of range, labels that are no class, an unknown attack, or parts that do not fit together.
    """
    if diagnostics not in ("auto", "full", "off"):
        raise UserError(f"diagnostics is {diagnostics!r}: choose auto, full or off.")
    given = dict(model) if isinstance(model, Mapping) else {"model": model}
    with _as_they_were(given.values()):
        found = data if isinstance(data, ImageClassData | ImageTextData) else _pixels(data, given)
        models = {name: _wrapped(each, found) for name, each in given.items()}
        captions = isinstance(found, ImageTextData)
        threat = threat or ThreatModel(words=1 if captions else 0)
        suite = _suite(attacks, threat, found, models, seed)
        kind = RetrievalEvaluator if captions else ClassificationEvaluator
        evaluator: Evaluator = kind(found, threat, batch_size=batch_size, limit=limit, seed=seed)
        evaluation = Evaluation(evaluator=evaluator, attacks=suite, threat=threat, resamples=resamples, seed=seed)
        groups = [Group(bare=evaluator.entry(name, each)) for name, each in models.items()]
        records = _records(evaluation, groups, progress=progress)
        table = summarise(with_worst(at_radius(records, threat.radius)), resamples=resamples, seed=seed)
        findings = find_all(evaluation, groups, table, records, extent=diagnostics, share=share, shown=progress)
        notes = [*evaluator.inputs(models.values()), *evaluator.describe(), f"Threat model: {threat}."]
    return EvaluationResult(
        table=table, records=records, diagnostics=tuple(findings), threat=threat, notes=tuple(notes)
    )


def _records(evaluation: Evaluation, groups: Sequence[Group], *, progress: bool) -> pd.DataFrame:
    if not progress:
        return evaluation.records(groups)
    cost, count = estimate(evaluation, groups), len(evaluation.evaluator)
    print(f"judge: {cost}", flush=True)
    with Progress(cost.runs * count, "judge", unit="images", work=count * sum(cost.by_run.values())) as bar:
        return evaluation.records(
            groups,
            show=lambda run, images: bar.advance_part(
                images, Part(run.title, run.part, count), work=images * cost.by_run[run.part]
            ),
        )


def _pixels(data: tuple[Tensor, Tensor], models: Mapping[str, nn.Module]) -> PixelClasses:
    """A set of images and labels in memory; its classes are those of the first model."""
    if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(each, Tensor) for each in data)):
        raise UserError("data is neither (images, labels), two tensors, nor a set of robustcli.data.")
    images, labels = (each.detach().cpu() for each in data)
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise UserError(
            f"images are {tuple(images.shape)} of {images.dtype}: expected (N,C,H,W) floating-point numbers in [0,1]."
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        low, high = float(images.min()), float(images.max())
        raise UserError(
            f"images reach from {low:.3g} to {high:.3g}: expected pixels in [0,1]; mean and std belong into the model, "
            "since an eps counts in pixels."
        )
    first = next(iter(models.values()))
    classes = _class_names(first, images)
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise UserError(f"labels are {tuple(labels.shape)} of {labels.dtype}: expected ({len(images)},) whole numbers.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        low, high = int(labels.min()), int(labels.max())
        raise UserError(f"labels reach from {low} to {high}, but the model has {len(classes)} classes.")
    names = [str(number) for number in range(len(images))]
    pixels, whole = images.float(), labels.long()
    return PixelClasses(
        "images",
        "given",
        pixels=pixels,
        scale=1.0,
        labels=whole,
        classes=classes,
        image_ids=names,
        fingerprint=fingerprint_of(pixels.numpy(), whole.numpy(), classes, names),
    )


def _class_names(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    if isinstance(model, ZeroShot):
        return tuple(model.names)
    if isinstance(model, Classifier):
        return model.classes or tuple(str(number) for number in range(model.class_count))
    return tuple(str(number) for number in range(_class_count(model, images)))


def _class_count(network: nn.Module, images: Tensor) -> int:
    """Y of a bare network, by its logits of one image."""
    network.eval()
    weight = next(network.parameters(), torch.empty(0))
    with torch.no_grad():
        logits = network(images[:1].to(weight))
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model gives {shape} for one image: expected logits (1,Y), one number a class.")
    return int(logits.shape[1])


def _wrapped(model: nn.Module, data: ImageClassData | ImageTextData) -> nn.Module:
    if isinstance(data, ImageTextData):
        if not isinstance(model, DualEncoder):
            raise UserError(f"{data.name} has captions, but the model is a {type(model).__name__}: give a DualEncoder.")
        return model
    if isinstance(model, DualEncoder):
        raise UserError(
            f"{data.name} has classes, but the model is a dual encoder: make it a classifier by texts, "
            "robustcli.models.ZeroShot."
        )
    if isinstance(model, Classifier | ZeroShot | PurifiedClassifier):
        return model
    channels = data.images(torch.zeros(1, dtype=torch.long)).shape[1]
    if channels not in (1, 3):
        raise UserError(f"images have {channels} channels: expected 1 or 3.")
    device = next(model.parameters(), torch.empty(0)).device
    wrapper = Classifier(model, classes=data.classes, mean=[0.0] * channels, std=[1.0] * channels)
    return wrapper.to(device)


def _suite(
    asked: str | Sequence[str] | Mapping[str, Attack],
    threat: ThreatModel,
    data: ImageClassData | ImageTextData,
    models: Mapping[str, Any],
    seed: int,
) -> dict[str, Attack]:
    captions = isinstance(data, ImageTextData)
    if isinstance(asked, Mapping):
        return {name: _fitting(name, attack, threat, captions=captions) for name, attack in asked.items()}
    suites, names = groups.groups_of("evaluate", [])["attacks"], [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        known = [*ATTACKS, *(suites if isinstance(asked, str) else [])]
        if name not in known:
            raise UserError(f"there is no attack {name!r}{did_you_mean(name, known)} (choices: {', '.join(known)})")
    if isinstance(asked, str) and asked in suites:
        words = [f"attacks={asked}"]
    else:
        words = ["attacks=none", *(f"+attack@attacks.{name}={name}" for name in names)]
    config = compose("evaluate", [*words, f"dataset={'scenes' if captions else 'digits'}"])
    first = next(iter(models.values()))
    candidates = lazy_candidates(config.candidates, data, first) if isinstance(data, ImageTextData) else None
    built = build_suite(config.attacks, threat, captions=captions, candidates=candidates, seed=seed)
    return {name: each.attack for name, each in built.items()}


def _fitting(name: str, attack: Attack, threat: ThreatModel, *, captions: bool) -> Attack:
    """An attack object for the kind of data: a search over one side of pairs leaves the other side clean."""
    if captions and isinstance(attack, ImageAttack):
        attack = SepAttack(image=attack, seed=attack.seed)
    if not isinstance(attack, RetrievalAttack if captions else ClassifierAttack):
        what = "captions" if captions else "classes"
        raise UserError(f"attacks[{name!r}] is {type(attack).__name__}, which is no attack on data with {what}.")
    attack.check(threat)
    return attack


@contextmanager
def _as_they_were(models: Any) -> Iterator[None]:
    """Context after which the train flag of every part of ``models`` is as before."""
    flags = []
    for model in models:
        if not isinstance(model, nn.Module):
            raise UserError(f"model is a {type(model).__name__}: give a torch.nn.Module, or several by name.")
        flags += [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training
