"""What the commands that judge models load: the data, the models of the labels, and where words come from."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig

from robustcli.attacks import CandidateSource
from robustcli.builders.defences import build_purified
from robustcli.builders.models import build_candidates, build_data, build_model
from robustcli.data import ImageClassData, ImageTextData
from robustcli.models import Classifier, DualEncoder
from robustcli.utils.errors import UserError

Data = ImageTextData | ImageClassData
Model = DualEncoder | Classifier


def load_subject(
    config: DictConfig, checkpoints: Mapping[str, str | None], device: torch.device
) -> tuple[Data, dict[str, Model], CandidateSource | None]:
    """The split to judge on, the models by label, each behind ``purifier`` if there is one, and the source of words
    (None for a set of classes).
    """
    data = build_data(config.dataset, config.evaluation.split)
    if isinstance(data, ImageClassData):
        check_weights(config, checkpoints)
    models = {
        label: build_model(config.model, path, data, seed=config.seed).to(device) for label, path in checkpoints.items()
    }
    put_in_front = build_purified(config.purifier, data, device)
    guarded = {label: put_in_front(model) for label, model in models.items()}
    if not isinstance(data, ImageTextData):
        return data, guarded, None
    first = next(iter(models.values()))
    assert isinstance(first, DualEncoder)
    return data, guarded, build_candidates(config.candidates, data, first)


def check_weights(config: DictConfig, checkpoints: Mapping[str, str | None]) -> None:
    """Refuse to judge random weights, which answer by chance."""
    known = any(config.model.get(key) for key in ("checkpoint", "pretrained"))
    if not known and None in checkpoints.values():
        raise UserError(
            f"model {config.model.get('_target_')} has random weights: give those to judge with checkpoint=FILE, or "
            "with model.pretrained where the model has it."
        )
