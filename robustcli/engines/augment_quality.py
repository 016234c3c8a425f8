"""`robustcli augment-quality`: measures of augmented pairs, before a training spends time on them."""

from dataclasses import dataclass
from functools import cache

import pandas as pd
from omegaconf import DictConfig

from robustcli.builders.data import build_augmented
from robustcli.builders.device import choose_device, on_device
from robustcli.config.unread import refuse_unread
from robustcli.data import ImageTextData
from robustcli.data.augment import Augmented
from robustcli.engines.loading import NamedModel, built, print_notes
from robustcli.evaluation.augmentation import Quality, QualityEvaluator
from robustcli.models import DualEncoder
from robustcli.report.augment_quality import Rule, write_quality
from robustcli.runs.run import Run
from robustcli.utils.progress import Progress


@dataclass(frozen=True)
class LoadedQuality:
    """The set, the same set with the pairs of each directory, by label, and the reference model."""

    data: ImageTextData
    augmented: dict[str, Augmented]
    reference: DualEncoder


def load(config: DictConfig) -> LoadedQuality:
    """Data and reference.

    Raises:
        UserError: a data set with classes, no directory, one of another set, or a reference of random weights.
    """
    device = choose_device(config.device, config.threads)
    refuse_unread("checkpoint", "the weights of the reference are those of reference.checkpoint")
    data, augmented = build_augmented(config.dataset, config.split)
    reference = built(NamedModel(config.reference, None, "reference"), data, config.seed)
    assert isinstance(reference, DualEncoder)
    return LoadedQuality(data, augmented, on_device(reference.eval(), device, "reference"))


def run(config: DictConfig, run: Run) -> float:
    """Measure each directory; returns the number of rows of the table that are predicted to help."""
    with run.phase("load"):
        loaded = load(config)
    print_notes({loaded.data.split: loaded.data})
    sets = {loaded.data.split: loaded.data.provenance()}
    run.note_inputs(
        data=sets | {f"augmentations/{label}": each.provenance() for label, each in loaded.augmented.items()},
        weights={"reference": loaded.reference.fingerprint()},
    )
    evaluator = QualityEvaluator(
        loaded.data,
        loaded.reference,
        items=config["items"],  # an attribute of this name is a method of the config
        batch_size=config.batch_size,
        resamples=config.resamples,
        seed=config.seed,
    )
    with run.phase("measure"):
        records, figures = _measure(run, loaded, evaluator)
    with run.phase("report"):
        return write_quality(
            run,
            loaded.data,
            records,
            figures,
            rule=Rule(alignment=config.prediction.alignment, gap=config.prediction.gap),
            items=config["items"],
            notes=[*evaluator.left_out, *_of_trainings(config.reference)],
        )


def _measure(run: Run, loaded: LoadedQuality, evaluator: QualityEvaluator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and figures of all directories; those that a killed run measured are read back."""
    records, figures = [], []
    with Progress(len(loaded.augmented), "measure", unit="directories") as progress:
        for number, (label, augmented) in enumerate(loaded.augmented.items()):

            @cache
            def measured(augmented: Augmented = augmented) -> Quality:
                return evaluator.measure(augmented)

            records.append(run.records_part(f"{number:03d}/records", lambda: measured().records))
            figures.append(run.records_part(f"{number:03d}/figures", lambda: measured().figures))
            for part in (records, figures):
                part[-1].insert(0, "augmentation", label)
            progress.advance(1, augmentation=label)
    return pd.concat(records, ignore_index=True), pd.concat(figures, ignore_index=True)


def _of_trainings(reference: DictConfig) -> list[str]:
    """A sentence where the reference is the model that a training starts from."""
    if reference.get("checkpoint") != "shipped":
        return []
    return [
        "The reference is the shipped model, which trainings start from by default: it may share their blind spots. "
        "Another is chosen by model@reference=... with reference.checkpoint=FILE or reference.pretrained=..."
    ]
