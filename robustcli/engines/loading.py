"""Loading and evaluation of models, shared by the engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from robustcli.builders.attacks import Candidates
from robustcli.builders.candidates import lazy_candidates
from robustcli.builders.data import build_data
from robustcli.builders.defences import build_purified
from robustcli.builders.device import choose_device
from robustcli.builders.evaluation import build_attacks, build_evaluation
from robustcli.builders.models import build_surrogate, build_trained
from robustcli.data import ImageClassData, ImageTextData
from robustcli.evaluation import Evaluation, Group
from robustcli.evaluation.evaluator import Keep
from robustcli.models import Classifier, DualEncoder
from robustcli.runs.run import Run
from robustcli.utils.progress import Progress

Data = ImageTextData | ImageClassData
Model = DualEncoder | Classifier


@dataclass(frozen=True)
class Loaded:
    """Models to evaluate, each bare and behind its defences, with data and evaluation."""

    device: torch.device
    data: Data
    groups: list[Group]
    evaluation: Evaluation

    def note(self, run: Run) -> None:
        """Write device and fingerprints of data and weights to the manifest of ``run``.

        Raises:
            UserError: a resumed run reads other data or weights than it began with.
        """
        run.note(device=str(self.device))
        weights = {entry.label: entry.model.fingerprint() for group in self.groups for entry in group.entries}
        run.note_inputs(data={self.data.split: self.data.provenance()}, weights=weights)


def load_models(config: DictConfig, checkpoints: Mapping[str, str | None], *, attack: str | None) -> Loaded:
    """The evaluated split, the models, each also behind ``purifier`` if there is one, and the evaluation.

    Args:
        checkpoints: label -> file of weights; None: those of the model's config.
        attack: name of the attack of ``attack=...`` in tables, see `attack_name`; None: the suite alone.

    Raises:
        UserError: random weights, or parts that do not fit together.
    """
    device = choose_device(config.device, config.threads)
    data = build_data(config.dataset, config.evaluation.split)
    models = {
        label: build_trained(config.model, path, data, seed=config.seed).to(device)
        for label, path in checkpoints.items()
    }
    defend = build_purified(config.purifier, data, device) if config.purifier is not None else None
    attacks = build_attacks(config, data, _candidates(config, data, models), name=attack, another="attack={0}")
    surrogate = build_surrogate(config, data, device)
    evaluation = build_evaluation(config, data, attacks, surrogate=surrogate, defended=defend is not None)
    groups = [_group(evaluation, label, model, defend) for label, model in models.items()]
    return Loaded(device, data, groups, evaluation)


def collect_records(
    run: Run, evaluation: Evaluation, groups: Sequence[Group], keep: Keep | None = None
) -> pd.DataFrame:
    """Records of an evaluation on ``groups``, with a progress bar; parts that a killed run stored are not run again.

    Args:
        keep: receives the adversarial examples of each run, chunk by chunk.
    """
    runs = sum(len(evaluation.runs(group)) for group in groups)
    with Progress(runs * len(evaluation.evaluator), "judge", unit="images") as progress:

        def show(name: str, images: int) -> None:
            progress.advance(images, run=name)

        return evaluation.records(groups, keep=keep, part=run.records_part, show=show)


def attack_name(config: DictConfig) -> str | None:
    """Name of the attack of ``attack=...`` in tables: its config file, and its ``name`` if it has one; else None."""
    if config.get("attack") is None:
        return None
    choice = str(HydraConfig.get().runtime.choices["attack"])
    return "-".join([choice, *filter(None, [config.attack.get("name")])])


def _candidates(config: DictConfig, data: Data, models: Mapping[str, Model]) -> Candidates | None:
    first = next(iter(models.values()))
    if isinstance(data, ImageTextData) and isinstance(first, DualEncoder):
        return lazy_candidates(config.candidates, data, first)
    return None


def _group(evaluation: Evaluation, label: str, model: Model, defend: Any) -> Group:
    entry = evaluation.evaluator.entry
    if defend is None:
        return Group(bare=entry(label, model))
    name = str(HydraConfig.get().runtime.choices["purifier"])
    return Group(bare=entry(label, model), defended=(entry(f"{label}+{name}", defend(model), name),))
