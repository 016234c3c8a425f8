"""Loading and judging, as every engine that judges models does it."""

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
from robustcli.builders.models import build_model, build_surrogate
from robustcli.data import ImageClassData, ImageTextData
from robustcli.evaluation import Evaluation, Group
from robustcli.evaluation.evaluator import Keep
from robustcli.models import Classifier, DualEncoder
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Progress

Data = ImageTextData | ImageClassData
Model = DualEncoder | Classifier


@dataclass(frozen=True)
class Loaded:
    """Models that are to be judged, each alone and behind what stands in front of it, and what judges them."""

    device: torch.device
    data: Data
    groups: list[Group]
    evaluation: Evaluation

    def note(self, run: Run) -> None:
        """Device, data and weights in the manifest of ``run``; a resumed run must read what it began with."""
        run.note(device=str(self.device))
        weights = {entry.label: entry.model.fingerprint() for group in self.groups for entry in group.entries}
        run.note_inputs(data={self.data.split: self.data.provenance()}, weights=weights)


def load_models(config: DictConfig, checkpoints: Mapping[str, str | None], *, attack: str | None) -> Loaded:
    """The split to judge on, the models by label, each also behind ``purifier`` if there is one, and the evaluation.

    Args:
        attack: what the table calls the attack of ``attack=...``.

    Raises:
        UserError: parts that do not fit together.
    """
    device = choose_device(config.device, config.threads)
    data = build_data(config.dataset, config.evaluation.split)
    check_weights(config, checkpoints)
    models = {
        label: build_model(config.model, path, data, seed=config.seed).to(device) for label, path in checkpoints.items()
    }
    put_in_front = build_purified(config.purifier, data, device) if config.purifier is not None else None
    attacks = build_attacks(config, data, _candidates(config, data, models), name=attack, another="attack={0}")
    surrogate = build_surrogate(config, data, device)
    evaluation = build_evaluation(config, data, attacks, surrogate=surrogate, defended=put_in_front is not None)
    groups = [_group(evaluation, label, model, put_in_front) for label, model in models.items()]
    return Loaded(device, data, groups, evaluation)


def collect_records(
    run: Run, evaluation: Evaluation, groups: Sequence[Group], keep: Keep | None = None
) -> pd.DataFrame:
    """The records of an evaluation, with a display; what a killed run had judged is not judged again."""
    runs = sum(len(evaluation.runs(group)) for group in groups)
    with Progress(runs * len(evaluation.evaluator), "judge", unit="images") as progress:

        def show(name: str, images: int) -> None:
            progress.advance(images, run=name)

        return evaluation.records(groups, keep=keep, part=run.records_part, show=show)


def attack_name(config: DictConfig) -> str | None:
    """What the table calls ``attack=...``; None: there is none."""
    if config.get("attack") is None:
        return None
    choice = str(HydraConfig.get().runtime.choices["attack"])
    return "-".join([choice, *filter(None, [config.attack.get("name")])])


def check_weights(config: DictConfig, checkpoints: Mapping[str, str | None]) -> None:
    """Refuse to judge random weights, which answer by chance."""
    known = any(config.model.get(key) for key in ("checkpoint", "pretrained"))
    if not known and None in checkpoints.values():
        raise UserError(
            f"model {config.model.get('_target_')} has random weights: give those to judge with checkpoint=FILE, or "
            "with model.pretrained where the model has it."
        )


def _candidates(config: DictConfig, data: Data, models: Mapping[str, Model]) -> Candidates | None:
    first = next(iter(models.values()))
    if isinstance(data, ImageTextData) and isinstance(first, DualEncoder):
        return lazy_candidates(config.candidates, data, first)
    return None


def _group(evaluation: Evaluation, label: str, model: Model, put_in_front: Any) -> Group:
    entry = evaluation.evaluator.entry
    if put_in_front is None:
        return Group(bare=entry(label, model))
    name = str(HydraConfig.get().runtime.choices["purifier"])
    return Group(bare=entry(label, model), defended=(entry(f"{label}+{name}", put_in_front(model), name),))
