"""Pictures of an evaluation: curves over the radius, adversarial examples, and strips of images through a defence.

Shapes: B images, C channels, H height, W width, L latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustcli.defenses import Purifier
from robustcli.evaluation import ClassificationEvaluator, Entry, Evaluation, Group
from robustcli.evaluation.aggregate import worst_attack
from robustcli.report.defences import Strip, accuracy_over_radius, strips
from robustcli.report.figures import examples, recall_over_eps
from robustcli.report.tables import label_of
from robustcli.runs.run import Run

_EXAMPLES, _STRIPS = 4, 5  # images of a picture


@dataclass(frozen=True)
class Picture:
    """A picture with its caption."""

    caption: str
    path: Path


def draw_models(
    run: Run,
    evaluation: Evaluation,
    groups: Sequence[Group],
    table: pd.DataFrame,
    curve: pd.DataFrame,
    records: pd.DataFrame,
    name: str,
) -> list[Picture]:
    """Recall over eps under the attack ``name``, and examples of each model under its worst attack.

    Args:
        table: summary at the radius of the table; gives the worst attack of each model.
        curve: summary over the radii, of one attack or of several; empty: no curve is drawn.
        records: one row a query; gives the examples.
        name: of the attack of the curve, where it is one.
    """
    pictures = []
    if not curve.empty:
        path, several = run.figure("recall_over_eps"), curve["attack"].nunique() > 1
        if several:  # a line for each
            curve, name = curve.assign(model=curve["model"] + ", " + curve["attack"].map(label_of)), "each attack"
        recall_over_eps(curve, path, budget=name, norm=evaluation.threat.norm)
        captions = "text_to_image" in evaluation.evaluator.directions
        also = ", which edits captions at eps 0 too" if captions and not several else ""
        pictures.append(Picture(f"What is left over the eps of the image attack ({name}{also}).", path))
    for entry in (group.bare for group in groups):
        worst = worst_attack(table, entry.label)
        if worst is None:
            continue
        path = run.figure(f"examples_{_file_name(entry.label)}")
        main = evaluation.main_run(worst, entry)
        attacked = records[(records["model"] == entry.label) & (records["attack"] == worst)]
        attacked = attacked[attacked["eps"].isna() | (attacked["eps"] == main.threat.radius)]
        # The attack runs again on a few samples; generators per sample make these images those of the records.
        examples(evaluation.evaluator.examples(main, attacked, _EXAMPLES), path, title=f"{entry.label}, under {worst}")
        pictures.append(Picture(f"{entry.label}: what {worst} makes of some images, its worst attack.", path))
    return pictures


def draw_defences(run: Run, evaluation: Evaluation, groups: Sequence[Group], table: pd.DataFrame) -> list[Picture]:
    """Accuracy over the radius, and for each defence strips of attacked, purified and residual images.

    For a purifier, strips of images with only the coarsest latents kept are added.
    """
    curve = run.figure("accuracy_over_radius")
    accuracy_over_radius(table, curve, norm=evaluation.threat.norm)
    caption = "Right answers over the radius: under the worst attack of each query, and under the worst static one."
    pictures = [Picture(caption, curve)]
    evaluator = evaluation.evaluator
    if not isinstance(evaluator, ClassificationEvaluator):
        return pictures
    rows = evaluator.spread(_STRIPS)
    for group in groups:
        for entry in group.defended:
            path = run.figure(f"strips_{_file_name(entry.label)}")
            strips(
                _strips(evaluation, evaluator, group, entry, rows), path, title=f"{entry.label}, {evaluation.threat}"
            )
            caption = f"{entry.label}: what comes in, what goes on to the classifier, and what was thrown away."
            pictures.append(Picture(caption, path))
            if isinstance(entry.model.cleaner, Purifier):
                path = run.figure(f"latents_{_file_name(entry.label)}")
                latents = _latents(evaluator, group.bare, entry.model.cleaner, rows)
                strips(latents, path, title="latents drawn anew, from the finest up")
                caption = f"{entry.label}: the coarsest latents kept, the others drawn anew."
                pictures.append(Picture(caption, path))
    return pictures


@torch.no_grad()
def _strips(
    evaluation: Evaluation, evaluator: ClassificationEvaluator, group: Group, entry: Entry, rows: Tensor
) -> list[Strip]:
    """Clean, adversarial and purified images, of the last attack bounded by a radius, or else of the last attack."""
    images, labels = evaluator.batch(entry.model, rows)
    bounded = [name for name in evaluation.attacks if not evaluation.is_minimum_norm(name)]
    name = (bounded or list(evaluation.attacks))[-1]
    torch.manual_seed(evaluation.seed)  # a cleaner that draws by itself reads the global state
    cleaner = entry.model.cleaner
    stages = {"clean": images, "clean, cleaned": cleaner(images)}
    for run in evaluation.runs(group):
        wanted = run.name == name and run.access in ("static", "adaptive") and entry in run.entries
        if not wanted or run.threat.radius not in (None, evaluation.threat.radius):
            continue
        adversarial = evaluator.perturbed(run, images, labels, rows)[0]
        purified = cleaner(adversarial)
        stages |= {f"{run.access} {name}": adversarial, f"{run.access},\ncleaned": purified}
        # The residual around mid-grey, since it has both signs.
        stages |= {f"{run.access},\nthrown away": (0.5 + (adversarial - purified)).clamp(0, 1)}
    return _as_strips(evaluator, group.bare, stages, rows)


@torch.no_grad()
def _latents(evaluator: ClassificationEvaluator, bare: Entry, purifier: Purifier, rows: Tensor) -> list[Strip]:
    """Each image with only its k coarsest latents kept, for k from all to none, under the same noise."""
    images, _ = evaluator.batch(bare.model, rows)
    features = purifier.generator.encode(images)
    count = len(purifier.generator.latent_shapes)
    noise = purifier.named_noise(rows.tolist(), images, seed=evaluator.seed)[-count:]
    stages = {"clean": images}
    for kept in sorted({round(count * share / 6) for share in range(7)}, reverse=True):
        alphas = (torch.arange(count) >= kept).to(images)
        stages[f"{kept} of {count} kept"] = purifier.generator.decode(features, alphas, noise)
    return _as_strips(evaluator, bare, stages, rows)


def _as_strips(evaluator: ClassificationEvaluator, bare: Entry, stages: dict[str, Tensor], rows: Tensor) -> list[Strip]:
    """One strip an image; each stage carries the prediction of the undefended model, the residual none."""

    def predictions(stage: str, images: Tensor) -> list[str]:
        if "thrown" in stage:
            return [""] * len(images)
        return [evaluator.data.classes[i] for i in bare.model(images.clamp(0, 1)).argmax(1).tolist()]

    predicted: dict[str, Any] = {stage: predictions(stage, images) for stage, images in stages.items()}
    return [
        Strip(
            evaluator.data.classes[int(evaluator.data.labels[row])],
            {stage: (images[place].cpu(), predicted[stage][place]) for stage, images in stages.items()},
        )
        for place, row in enumerate(rows.tolist())
    ]


def _file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._+=-" else "_" for letter in label)
