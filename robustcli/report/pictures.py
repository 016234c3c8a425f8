"""Pictures of an evaluation: curves over the radius, adversarial examples, and strips of images through a defence.

Shapes: B images, C channels, H height, W width, L latents.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks.core.threat import shown
from robustcli.defenses import Purifier
from robustcli.evaluation import ClassificationEvaluator, Entry, Evaluation, Group, SentenceEvaluator
from robustcli.evaluation.aggregate import worst_attack
from robustcli.report.album import Album
from robustcli.report.defences import Strip, accuracy_over_radius, strips
from robustcli.report.figures import ANSWERS, CAPTIONS, examples, recall_over_eps
from robustcli.report.tables import Grid, curve_grid, label_of

_EXAMPLES, _STRIPS = 4, 5  # images of a picture


def draw_models(
    album: Album,
    evaluation: Evaluation,
    groups: Sequence[Group],
    table: pd.DataFrame,
    curve: pd.DataFrame,
    records: pd.DataFrame,
    name: str,
) -> None:
    """Draw recall over eps under the attack ``name``, and examples of each model under its worst attack.

    Args:
        table: summary at the radius of the table; gives the worst attack of each model.
        curve: summary over the radii, of one attack or of several; empty: no curve is drawn.
        records: one row a query; gives the examples.
        name: of the attack of the curve, where it is one.
    """
    if not curve.empty:
        several = curve["attack"].nunique() > 1
        if several:  # a line for each
            curve, name = curve.assign(model=curve["model"] + ", " + curve["attack"].map(label_of)), "each attack"
        draw = partial(recall_over_eps, curve, budget=name, norm=evaluation.threat.norm)
        captions = "text_to_image" in evaluation.evaluator.directions
        also = ", which edits captions at eps 0 too" if captions and not several else ""
        caption = f"What is left over the eps of the image attack ({name}{also})."
        album.draw("recall_over_eps", caption, draw, curve_grid(curve, partial(shown, norm=evaluation.threat.norm)))
    if isinstance(evaluation.evaluator, SentenceEvaluator):
        return  # they have no picture, see `edited_grid`
    for entry in (group.bare for group in groups):
        worst = worst_attack(table, entry.label)
        if worst is None:
            continue
        caption = f"{entry.label}: what {worst} makes of some images, its worst attack."
        album.draw(f"examples_{entry.label}", caption, partial(_draw_examples, evaluation, entry, worst, records))


def _draw_examples(evaluation: Evaluation, entry: Entry, worst: str, records: pd.DataFrame, path: Path) -> Grid:
    """Draw them; their texts, which a page shows in any script, and a picture in that of its font alone."""
    main = evaluation.main_run(worst, entry)
    attacked = records[(records["model"] == entry.label) & (records["attack"] == worst)]
    attacked = attacked[attacked["eps"].isna() | (attacked["eps"] == main.threat.radius)]
    # Pairs are attacked again; generators per sample make these images those of the records.
    shown = evaluation.evaluator.examples(main, attacked, _EXAMPLES)
    answers = isinstance(evaluation.evaluator, ClassificationEvaluator)
    words = ANSWERS if answers else CAPTIONS
    examples(shown, path, title=f"{entry.label}, under {worst}", texts=words)
    rows = [[f"{place}", each.caption, each.adversarial_caption, each.note] for place, each in enumerate(shown, 1)]
    heads = ["answer", "under attack"] if answers else ["caption", "as edited"]
    return Grid("The texts, from the top", ["", *heads, "outcome"], rows)


def draw_defences(album: Album, evaluation: Evaluation, groups: Sequence[Group], table: pd.DataFrame) -> None:
    """Draw accuracy over the radius, and for each defence strips of attacked, purified and residual images.

    For a purifier, strips of images with only the coarsest latents kept are added.
    """
    caption = "Right answers over the radius: under the worst attack of each query, and under the worst static one."
    if evaluation.attacks:
        album.draw("accuracy_over_radius", caption, partial(accuracy_over_radius, table, norm=evaluation.threat.norm))
    evaluator = evaluation.evaluator
    if not isinstance(evaluator, ClassificationEvaluator):
        return
    rows = evaluator.spread(_STRIPS)
    for group in groups:
        for entry in group.defended:
            caption = f"{entry.label}: what comes in, what goes on to the classifier, and what was thrown away."
            draw = partial(_draw_strips, evaluation, evaluator, group, entry, rows)
            album.draw(f"strips_{entry.label}", caption, draw)
            if isinstance(entry.model.cleaner, Purifier):
                caption = f"{entry.label}: the coarsest latents kept, the others drawn anew."
                draw = partial(_draw_latents, evaluator, group.bare, entry.model.cleaner, rows)
                album.draw(f"latents_{entry.label}", caption, draw)


@torch.no_grad()
def _draw_strips(
    evaluation: Evaluation, evaluator: ClassificationEvaluator, group: Group, entry: Entry, rows: Tensor, path: Path
) -> None:
    """Strips of clean, adversarial and purified images, of the last attack bounded by a radius, or of the last."""
    images = evaluator.images(entry.model, rows)
    bounded = [name for name in evaluation.attacks if not evaluation.is_minimum_norm(name)]
    name = (bounded or list(evaluation.attacks) or [""])[-1]
    torch.manual_seed(evaluation.seed)  # a cleaner that draws by itself reads the global state
    cleaner = entry.model.cleaner
    stages = {"clean": images, "clean, cleaned": cleaner(images)}
    for run in evaluation.runs(group):
        wanted = run.name == name and run.access in ("static", "adaptive") and entry in run.entries
        if not wanted or run.threat.radius not in (None, evaluation.threat.radius):
            continue
        adversarial = evaluator.adversarial(run, rows)
        purified = cleaner(adversarial)
        stages |= {f"{run.access} {name}": adversarial, f"{run.access},\ncleaned": purified}
        # The residual around mid-grey, since it has both signs.
        stages |= {f"{run.access},\nthrown away": (0.5 + (adversarial - purified)).clamp(0, 1)}
    strips(_as_strips(evaluator, group.bare, stages, rows), path, title=f"{entry.label}, {evaluation.threat}")


@torch.no_grad()
def _draw_latents(
    evaluator: ClassificationEvaluator, bare: Entry, purifier: Purifier, rows: Tensor, path: Path
) -> None:
    """Strips of each image with only its k coarsest latents kept, for k from all to none, under the same noise."""
    images, _ = evaluator.batch(bare.model, rows)
    features = purifier.generator.encode(images)
    count = len(purifier.generator.latent_shapes)
    noise = purifier.named_noise(rows.tolist(), images, seed=evaluator.seed)[-count:]
    stages = {"clean": images}
    for kept in sorted({round(count * share / 6) for share in range(7)}, reverse=True):
        alphas = (torch.arange(count) >= kept).to(images)
        stages[f"{kept} of {count} kept"] = purifier.generator.decode(features, alphas, noise)
    strips(_as_strips(evaluator, bare, stages, rows), path, title="latents drawn anew, from the finest up")


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
